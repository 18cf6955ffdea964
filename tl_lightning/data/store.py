"""Choose how a source's images are kept: in memory, memory-mapped from the disk cache, or read from files each time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from tl_lightning.data.cache import DecodedCache
from tl_lightning.data.decoding import BadImageError
from tl_lightning.data.pixels import DecodedPixels, MappedPixels, Pixels, StreamedPixels, TensorPixels
from tl_lightning.data.sources import ArraySource, PixelSource, Positions

WORTH_KEEPING = 1024  # images: decoding fewer takes less than a second, so they are not written to disk
_SHARED_STORES = 6


@dataclass(frozen=True)
class Storage:
    """How images may be kept.

    Args:
        cache_folder: Folder for decoded images on disk.
        memory_limit: Bytes of decoded images of one source that may stay in memory.
        stream: Read images from their files each time they are needed.
        check: Read every wanted image once beforehand when streaming, to find those that cannot be read.
    """

    cache_folder: Path
    memory_limit: int
    stream: bool = False
    check: bool = False


_shared: OrderedDict[tuple[str, int], Pixels] = OrderedDict()  # trials of a study decode their images once


def open_pixels(
    source: PixelSource, size: int, wanted: Positions, storage: Storage
) -> tuple[Pixels, dict[int, BadImageError]]:
    """Return the pixels of a source with the wanted images ready, and the wanted images that cannot be read.

    Args:
        source: Where the images come from.
        size: Side of the square that they are decoded to.
        wanted: Positions that will be gathered.
        storage: How they may be kept.
    """
    if storage.stream and not isinstance(source, ArraySource):
        pixels: Pixels = StreamedPixels(source, size, storage.check)
        return pixels, pixels.prepare(wanted)
    if isinstance(source, ArraySource) and source.images.shape[-2:] == (size, size):
        return TensorPixels(source.images), {}
    content = source.content_key()
    cache = DecodedCache(storage.cache_folder, source, size, content)
    pixels = _shared.get((content, size)) or _opened(cache, wanted, storage)
    if isinstance(pixels, DecodedPixels) and _overflows(pixels, wanted, storage):
        pixels = _opened(cache, wanted, storage)
    _shared[content, size] = pixels
    _shared.move_to_end((content, size))
    _drop_least_recent(storage.memory_limit)
    failures = pixels.prepare(wanted)
    if isinstance(pixels, DecodedPixels) and pixels.complete and _kept_on_disk(cache, storage) and not cache.exists():
        cache.save(*pixels.all())
    return pixels, failures


def forget_pixels() -> None:
    """Drop the decoded images that this process keeps; who still uses some keeps them."""
    _shared.clear()


def _opened(cache: DecodedCache, wanted: Positions, storage: Storage) -> Pixels:
    source, size = cache.source, cache.shape[-1]
    fits = cache.nbytes <= storage.memory_limit
    if _kept_on_disk(cache, storage):
        entry = cache.load(into_memory=fits)
        if entry is None and not fits and len(wanted) * cache.image_bytes > storage.memory_limit:
            entry = cache.load(into_memory=False) if cache.decode() else None
            if entry is None:
                return StreamedPixels(source, size, storage.check)
        if entry is not None:
            return TensorPixels(*entry) if fits else MappedPixels(*entry)
    return DecodedPixels(source, size)


def _kept_on_disk(cache: DecodedCache, storage: Storage) -> bool:
    large = len(cache.source) >= WORTH_KEEPING or cache.nbytes > storage.memory_limit
    return large and not isinstance(cache.source, ArraySource)


def _overflows(pixels: DecodedPixels, wanted: Positions, storage: Storage) -> bool:
    """Whether decoding what is wanted beside what other trials wanted would take more memory than allowed."""
    missing = pixels.missing(wanted) * pixels.image_bytes
    return missing > 0 and pixels.nbytes + missing > storage.memory_limit


def _drop_least_recent(memory_limit: int) -> None:
    while len(_shared) > _SHARED_STORES or (
        len(_shared) > 1 and sum(getattr(pixels, "nbytes", 0) for pixels in _shared.values()) > memory_limit
    ):
        _shared.popitem(last=False)
