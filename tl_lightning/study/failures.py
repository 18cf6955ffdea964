"""What an error in a trial means for the study: a failed row, a smaller batch, or the end of the study."""

from __future__ import annotations

import errno
import gc
from pathlib import Path

import torch

from tl_lightning.errors import UserError

# What no later trial could get past: the disk is full, the quota is used up, the folder is read-only or gone.
OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE)
_ALLOCATORS = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the host or a device had too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def free_memory() -> None:
    """Give back what a failed trial held, once its traceback is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def end_of_study(error: BaseException, out: Path, data_dir: str | None) -> UserError | None:
    """Return what to tell the user where the error would meet every later trial too; None for a trial's own failure.

    Args:
        error: What the trial raised.
        out: The output folder.
        data_dir: The folder of the images, where the user gave one.
    """
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in OUTPUT_ERRORS:
            return UserError(
                f"{cause.filename or out}: {cause.strerror}; finished trials are kept, "
                "and the same command goes on once that is mended"
            )
    if data_dir is not None and not Path(data_dir).exists():
        return UserError(
            f"--data-dir {data_dir} is gone; finished trials are kept, and the same command goes on once it is back"
        )
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
