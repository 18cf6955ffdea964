"""What a data module is, in the two lines that ``print`` shows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence, Sized

from tl_lightning.data.partition import PARTS


def summary(module: object, name: str, size: tuple[int, int], batch_size: int, class_names: Sequence[str]) -> str:
    """Return the description of a data module with sets of three parts; they are there after its ``setup``.

    Args:
        module: The data module.
        name: Name of the image set.
        size: Height and width of the images in pixels.
        batch_size: Images a training batch.
        class_names: Names of the classes; none before ``setup``.
    """
    pixels = f"{size[0]} px" if size[0] == size[1] else f"{size[0]} x {size[1]} px"
    head = f"{type(module).__name__}({name!r}): {pixels}, batches of {batch_size}"
    if not class_names:
        return f"{head}; not set up"
    sets: dict[str, Sized] = {part: getattr(module, f"{part}_set") for part in PARTS}
    images = ", ".join(f"{len(image_set):,} {part}" for part, image_set in sets.items())
    names = textwrap.shorten(", ".join(class_names), 80, placeholder=" ...")
    return f"{head}\n{images} images of {len(class_names)} classes: {names}"
