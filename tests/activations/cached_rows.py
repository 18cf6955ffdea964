"""Rows that a cache is asked for, and what it says of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tl_lightning.features import (
    ActivationCache,
)

IDS = [f"{i:032x}" for i in range(40)]
ROWS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))


class Counter:
    """Computes rows of ``ROWS`` and remembers which."""

    def __init__(self, names: tuple[str, ...] = ("a",)) -> None:
        self.names = names
        self.computed: list[int] = []

    def __call__(self, positions: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
        for some in positions.split(7):
            self.computed += some.tolist()
            yield {name: ROWS[some] * (k + 1) for k, name in enumerate(self.names)}


def collect(cache: ActivationCache, group: str = "g", ids: list[str] = IDS) -> tuple[torch.Tensor | None, list[int]]:
    """Return what the cache gives for one group, and what had to be computed."""
    rows = {i: k for k, i in enumerate(IDS)}
    counter = Counter()
    order = torch.tensor([rows[i] for i in ids])
    found = cache.collect({"a": group}, ids, lambda positions: counter(order[positions]))["a"]
    return (None if found is None else found.all()), counter.computed


@contextmanager
def one_warning(match: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = [str(w.message) for w in caught]
    assert len(messages) == 1, messages
    assert match in messages[0]
    assert "\n" not in messages[0]


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def files(directory: Path, suffix: str) -> list[Path]:
    return sorted(directory.glob(f"*{suffix}"))
