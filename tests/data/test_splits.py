"""Splits keep the mixture of classes, subsets are nested, label noise is exact; all by seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_lightning.data import splits
from tl_lightning.errors import UserError

label_lists = st.lists(st.integers(0, 5), min_size=2, max_size=300).map(lambda x: np.asarray(x, dtype=np.int64))
seeds = st.integers(0, 2**32)


@settings(max_examples=80, deadline=None)
@given(labels=label_lists, fraction=st.floats(0.01, 0.99), seed=seeds)
def test_a_holdout_partitions_and_keeps_every_class(labels: np.ndarray, fraction: float, seed: int) -> None:
    kept, held = splits.stratified_holdout(labels, fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert set(labels[kept]) == set(labels)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if len(held) == round(fraction * len(labels)) and count > 20:
            assert abs((labels[held] == label).sum() - fraction * count) < 6


def test_a_holdout_has_the_exact_mixture_where_it_divides() -> None:
    labels = np.repeat([0, 1, 2], [40, 100, 20])
    _, held = splits.stratified_holdout(labels, 0.25, seed=3)
    assert np.bincount(labels[held]).tolist() == [10, 25, 5]


def test_seeds_differ_and_repeat() -> None:
    labels = np.repeat([0, 1], 50)
    first, again, other = (splits.stratified_holdout(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(max_examples=60, deadline=None)
@given(labels=label_lists, count=st.integers(1, 320), seed=seeds)
def test_a_cap_has_the_wanted_size(labels: np.ndarray, count: int, seed: int) -> None:
    capped = splits.stratified_cap(labels, count, seed)
    assert len(capped) == min(count, len(labels)) == len(set(capped))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, small=st.integers(1, 20), more=st.integers(0, 20))
def test_subsets_are_nested(seed: int, small: int, more: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2], 40))
    names = ("a", "b", "c")
    few = splits.samples_per_class(labels, small, seed, names)
    many = splits.samples_per_class(labels, small + more, seed, names)
    part = splits.class_fraction(labels, (small + more) / 40, seed)
    assert np.bincount(labels[few]).tolist() == [small] * 3
    assert set(few) <= set(many) == set(part)


def test_a_fraction_keeps_at_least_one_of_a_class() -> None:
    labels = np.repeat([0, 1], [1000, 3])
    assert np.bincount(labels[splits.class_fraction(labels, 0.01, 0)]).tolist() == [10, 1]


def test_too_few_images_name_the_class_and_its_count() -> None:
    labels = np.repeat([0, 1], [30, 7])
    with pytest.raises(UserError, match=r"samples_per_class is 8, but class 'rare' has only 7"):
        splits.samples_per_class(labels, 8, 0, ("common", "rare"))


@settings(max_examples=60, deadline=None)
@given(labels=label_lists, rate=st.floats(0, 1), seed=seeds)
def test_label_noise_is_exact_and_changes_the_class(labels: np.ndarray, rate: float, seed: int) -> None:
    noisy = splits.with_label_noise(labels, rate, 6, seed)
    assert (noisy != labels).sum() == round(rate * len(labels))
    assert noisy.min() >= 0
    assert noisy.max() <= 5


def test_label_noise_reaches_every_other_class_evenly() -> None:
    noisy = splits.with_label_noise(np.zeros(6000, dtype=np.int64), 1.0, 4, seed=0)
    assert np.abs(np.bincount(noisy, minlength=4)[1:] - 2000).max() < 150
