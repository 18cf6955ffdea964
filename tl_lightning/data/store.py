"""Choose how a source's images are kept: in memory, memory-mapped from the disk cache, or read from files each time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from tl_lightning.data.cache import DecodedCache
from tl_lightning.data.decoding import BadImageError
from tl_lightning.data.pixels import DecodedPixels, MappedPixels, Pixels, StreamedPixels, TensorPixels
from tl_lightning.data.sources import ArraySource, PixelSource, Positions

WORTH_KEEPING = 4096  # images: decoding fewer takes seconds, so they are not written to disk
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
    elif isinstance(source, ArraySource) and source.images.shape[-2:] == (size, size):
        pixels = TensorPixels(source.images)
    else:
        pixels = _kept(source, size, wanted, storage)
    return pixels, pixels.prepare(wanted)


def _kept(source: PixelSource, size: int, wanted: Positions, storage: Storage) -> Pixels:
    content = source.content_key()
    image_bytes = source.channels * size * size
    fits = len(source) * image_bytes <= storage.memory_limit
    pixels = _shared.get((content, size))
    if isinstance(pixels, DecodedPixels) and not fits:
        pixels = None if pixels.nbytes + len(wanted) * image_bytes > storage.memory_limit else pixels
    if pixels is None:
        pixels = _opened(source, size, wanted, storage, DecodedCache(storage.cache_folder, source, size, content))
    _shared[content, size] = pixels
    _shared.move_to_end((content, size))
    _drop_least_recent(storage.memory_limit)
    return pixels


def _opened(source: PixelSource, size: int, wanted: Positions, storage: Storage, cache: DecodedCache) -> Pixels:
    image_bytes = source.channels * size * size
    fits = len(source) * image_bytes <= storage.memory_limit
    kept_on_disk = not isinstance(source, ArraySource) and (len(source) >= WORTH_KEEPING or not fits)
    if not kept_on_disk:
        return DecodedPixels(source, size)
    entry = cache.load(into_memory=fits)
    if entry is not None:
        return TensorPixels(*entry) if fits else MappedPixels(*entry)
    if fits:
        pixels = DecodedPixels(source, size)
        pixels.prepare(wanted)
        if pixels.complete:
            cache.save(*pixels.all())
        return pixels
    if len(wanted) * image_bytes <= storage.memory_limit:
        return DecodedPixels(source, size)
    entry = cache.load(into_memory=False) if cache.decode() else None
    return MappedPixels(*entry) if entry is not None else StreamedPixels(source, size, storage.check)


def _drop_least_recent(memory_limit: int) -> None:
    while len(_shared) > _SHARED_STORES or (
        len(_shared) > 1 and sum(getattr(pixels, "nbytes", 0) for pixels in _shared.values()) > memory_limit
    ):
        _shared.popitem(last=False)
