"""The test set of a study is opened once for each trained model, by the study itself, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import lightning.pytorch as pl


class SealedTestError(RuntimeError):
    """Somebody looks at the test set who should not, or for a second time."""


_open: WeakKeyDictionary[pl.LightningDataModule, bool] = WeakKeyDictionary()
_tested: WeakKeyDictionary[pl.LightningModule, WeakSet[pl.LightningDataModule]] = WeakKeyDictionary()


def seal(datamodule: pl.LightningDataModule) -> None:
    """Make a data module refuse its test loader until ``opened_test`` opens it."""
    if datamodule in _open:
        return
    _open[datamodule] = False
    loader = datamodule.test_dataloader

    def sealed_test_dataloader() -> Any:
        if not _open[datamodule]:
            raise SealedTestError("the test set is opened once, by the study, for the model that validation selected")
        return loader()

    datamodule.test_dataloader = sealed_test_dataloader  # type: ignore[method-assign]


@contextmanager
def opened_test(datamodule: pl.LightningDataModule, module: pl.LightningModule) -> Iterator[None]:
    """Open a sealed test set for one trained model.

    Raises:
        SealedTestError: The model has been tested on it before.
    """
    seen = _tested.setdefault(module, WeakSet())
    if datamodule in seen:
        raise SealedTestError("this model has been tested on this set before: a second look would be selection")
    seen.add(datamodule)
    _open[datamodule] = True
    try:
        yield
    finally:
        _open[datamodule] = False
