"""The layer that Grad-CAM looks at: found from the model, or named by the user."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.models import SwinTransformer, VisionTransformer

from tl_lightning.errors import UserError, unknown_name


@dataclass(frozen=True)
class TargetLayer:
    """A layer of a model and how to read its output.

    Attributes:
        name: Path of the module within the backbone.
        module: The module.
        to_maps: Turns its output into float32 maps [N, channels, h, w]; always a copy.
    """

    name: str
    module: nn.Module
    to_maps: Callable[[Tensor], Tensor]


def find_target_layer(
    model: nn.Module, images: Tensor, *, layer: str | None = None, attribute: str = ""
) -> TargetLayer:
    """Return the layer of that name, or the last feature maps before the classifier.

    The default is the last module whose output is larger than one pixel, comes from convolutions and is all that the
    class scores see of the image (``layer4``, ``features``); for torchvision's ViT the first norm of the last encoder
    layer, as the class token alone leaves the last layer, and for Swin the final norm.

    Args:
        model: The model, in evaluation mode.
        images: Images [N, 3, H, W] as the model takes them; the first is run to find the default.
        layer: Path of a module within the backbone.
        attribute: Path of the backbone within the model; the model itself by default.

    Raises:
        UserError: There is no such layer (the nearest names are suggested), or no layer with maps.
    """
    backbone = backbone_of(model, attribute)
    if layer is None:
        layer = _transformer_default(backbone) or _last_maps(model, backbone, images[:1])
    modules = dict(backbone.named_modules())
    if not layer or layer not in modules:
        raise unknown_name("target layer", layer, [name for name in modules if name])
    return TargetLayer(layer, modules[layer], _reader(backbone, modules[layer], layer))


def backbone_of(model: nn.Module, attribute: str) -> nn.Module:
    """Return the submodule at a path, without the wrapper of ``torch.compile``."""
    modules = dict(model.named_modules())
    if attribute not in modules:
        raise unknown_name("attribute", attribute, [name for name, _ in model.named_children()])
    wrapped: nn.Module = modules[attribute]._modules.get("_orig_mod") or modules[attribute]
    return wrapped


def _transformer(backbone: nn.Module) -> tuple[str, nn.Module] | None:
    """Return torchvision's ViT or Swin in a backbone with the start of its layers' paths, if there is one."""
    for name, module in backbone.named_modules():
        if isinstance(module, VisionTransformer | SwinTransformer):
            return f"{name}." if name else "", module
    return None


def _transformer_default(backbone: nn.Module) -> str | None:
    prefix, transformer = _transformer(backbone) or ("", None)
    if isinstance(transformer, VisionTransformer):
        return f"{prefix}encoder.layers.encoder_layer_{len(transformer.encoder.layers) - 1}.ln_1"
    return f"{prefix}norm" if transformer is not None else None


def _reader(backbone: nn.Module, module: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    prefix, transformer = _transformer(backbone) or ("", None)
    if transformer is None or isinstance(module, nn.Conv2d) or name == f"{prefix}permute":
        layout: Callable[[Tensor], Tensor | None] = _as_they_are
    else:
        layout = _from_tokens if isinstance(transformer, VisionTransformer) else _from_channels_last

    def to_maps(output: Tensor) -> Tensor:
        maps = layout(output) if isinstance(output, Tensor) else None
        if maps is None or maps.ndim != 4:
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"target layer {name!r} gives {shape}, not maps [N, channels, h, w]: name a convolution or a block of "
                "them, or a token layer of torchvision's ViT or Swin"
            )
        return maps.to(torch.float32, copy=True)  # a copy: an in-place ReLU after the layer would change the maps

    return to_maps


def _as_they_are(output: Tensor) -> Tensor:
    return output


def _from_tokens(output: Tensor) -> Tensor | None:
    """Return the patch tokens [N, 1 + h * w, channels] of a square image as maps."""
    side = math.isqrt(output.shape[1] - 1) if output.ndim == 3 else 0
    if side == 0 or side**2 != output.shape[1] - 1:
        return None
    return output[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _from_channels_last(output: Tensor) -> Tensor | None:
    return output.permute(0, 3, 1, 2) if output.ndim == 4 else None


def _last_maps(model: nn.Module, backbone: nn.Module, image: Tensor) -> str:
    names = {module: name for name, module in backbone.named_modules() if name}
    finished = _modules_as_they_finish(model, list(names), image)
    head = [m for m, _ in finished if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    for module, shape in reversed(finished):
        inside = set(module.modules())
        is_map = len(shape) == 4 and min(shape[2:]) > 1 and any(isinstance(m, nn.Conv2d) for m in inside)
        if is_map and not inside & set(head) and _separates(model, module, image):
            return names[module]
    size = " x ".join(str(n) for n in image.shape[2:])
    raise UserError(
        f"no layer of {type(backbone).__name__} has feature maps larger than one pixel for images of {size}: "
        "use larger images or name a target layer"
    )


def _modules_as_they_finish(
    model: nn.Module, modules: list[nn.Module], image: Tensor
) -> list[tuple[nn.Module, torch.Size]]:
    """Return the modules whose output is a tensor, with its shape, in the order in which they return."""
    finished: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            finished.append((module, output.shape))

    with hooked([m.register_forward_hook(note) for m in modules]), torch.no_grad():
        model(image)
    return finished


def _separates(model: nn.Module, module: nn.Module, image: Tensor) -> bool:
    """Return whether all paths from the image to the output lead through the module (a branch has others beside it)."""

    def cut(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.detach()

    with hooked([module.register_forward_hook(cut)]), torch.enable_grad():
        output = model(image.detach().clone().requires_grad_(True))
    return isinstance(output, Tensor) and not output.requires_grad


@contextlib.contextmanager
def hooked(handles: list[RemovableHandle]) -> Iterator[None]:
    """Remove hooks afterwards."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
