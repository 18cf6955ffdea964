from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from tl_lightning.analysis import layerwise_cka, linear_cka, minibatch_cka
from tl_lightning.errors import UserError


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def hsic_of_song(k: np.ndarray, kernel_l: np.ndarray) -> float:
    """The unbiased estimator as printed (Song et al. 2012, eq. 5), with loops in place of centring."""
    n = len(k)
    k, kernel_l = k.copy(), kernel_l.copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(kernel_l, 0)
    one = np.ones(n)
    total = np.trace(k @ kernel_l) + (one @ k @ one) * (one @ kernel_l @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ k @ kernel_l @ one)) / (n * (n - 3))


def test_two_columns_by_hand():
    # x = (1, 0), (-1, 0), (0, 1), (0, -1): X^T X = 2 I. y = x diag(1, 2): Y^T X = diag(2, 4), Y^T Y = diag(2, 8).
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    y = x * [1.0, 2.0]
    assert linear_cka(x, y) == pytest.approx((4 + 16) / (np.sqrt(8) * np.sqrt(4 + 64)), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(8, 30),
    width=st.integers(2, 40),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 1000),
)
def test_invariant_under_rotation_scaling_and_shift(rows, width, scale, shift, seed):
    x, y = normal(seed, rows, width), normal(seed + 1, rows, 7)
    turned = scale * (x @ ortho_group.rvs(width, random_state=seed)) + shift * scale
    for cka in (linear_cka, minibatch_cka):
        assert cka(turned, y) == pytest.approx(cka(x, y), abs=1e-7)
        assert cka(x, turned) == pytest.approx(1.0, abs=1e-7)
        assert cka(x, y) == pytest.approx(cka(y, x), abs=1e-9)


def test_not_invariant_under_other_linear_maps():
    x = normal(0, 200, 5)
    assert linear_cka(x, x * [100, 1, 1, 1, 1]) < 0.6


def test_wide_and_tall_formulas_agree():
    x, y = normal(0, 12, 9), normal(1, 12, 4)
    wide = np.concatenate([y, np.zeros((12, 20))], axis=1)  # zero columns change nothing but the path taken
    assert linear_cka(x, y) == pytest.approx(linear_cka(x, wide), abs=1e-12)


def test_unbiased_estimate_matches_the_printed_formula_over_batches():
    x, y = normal(0, 40, 6), normal(0, 40, 6) ** 2 + normal(1, 40, 6)
    order = np.random.default_rng(3).permutation(40)
    terms = np.zeros(3)
    for start in (0, 16, 32):
        rows = order[start : start + 16]
        k, kernel_l = x[rows] @ x[rows].T, y[rows] @ y[rows].T
        terms += [hsic_of_song(k, kernel_l), hsic_of_song(k, k), hsic_of_song(kernel_l, kernel_l)]
    expected = terms[0] / np.sqrt(terms[1] * terms[2])
    assert minibatch_cka(x, y, batch_size=16, seed=3) == pytest.approx(expected, abs=1e-10)


def test_independent_wide_features_are_unlike_only_for_the_unbiased_estimate():
    pairs = [(normal(2 * s, 32, 500), normal(2 * s + 1, 32, 500)) for s in range(20)]
    assert np.mean([linear_cka(x, y) for x, y in pairs]) > 0.9
    assert abs(np.mean([minibatch_cka(x, y) for x, y in pairs])) < 0.03


def test_layers_against_layers():
    first = {"conv": torch.randn(20, 3, 4, 4, generator=torch.manual_seed(0)), "fc": normal(1, 20, 5)}
    second = {"fc": normal(1, 20, 5), "other": normal(2, 20, 8), "dead": np.zeros((20, 4))}
    matrix = layerwise_cka(first, second, batch_size=8)
    assert matrix.shape == (2, 3)
    assert matrix[1, 0] == pytest.approx(1.0)
    assert matrix[0, 1] == pytest.approx(minibatch_cka(first["conv"], second["other"], batch_size=8))
    assert np.isnan(matrix[:, 2]).all()


def test_constant_side_is_not_a_number():
    assert np.isnan(linear_cka(np.full((6, 3), 0.1), normal(0, 6, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_cka(np.zeros((4, 2)), np.zeros((5, 2))), "4 and 5 rows"),
        (lambda: linear_cka(np.array([[1.0], [np.nan]]), np.zeros((2, 1))), "1 values that are not finite"),
        (lambda: minibatch_cka(np.zeros((3, 2)), np.zeros((3, 2))), "at least 4 rows"),
        (lambda: layerwise_cka({"a": np.zeros((8, 2))}, {"b": np.zeros((9, 2))}), "{'a': 8} and {'b': 9}"),
        (lambda: layerwise_cka({"a": np.zeros((8, 2))}, {"a": np.zeros((9, 2))}), "{'a': 8} and {'a': 9}"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
