from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from sklearn.datasets import load_digits

from tl_lightning.analysis import frechet_distance, gaussian_frechet_distance, proxy_a_distance, weight_drift
from tl_lightning.errors import UserError


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_frechet_of_diagonal_gaussians_by_hand():
    # (3)^2 + (4)^2 from the means, (1 - 2)^2 + (3 - 5)^2 from the standard deviations.
    distance = gaussian_frechet_distance([0, 0], np.diag([1, 9]), [3, 4], np.diag([4, 25]))
    assert distance == pytest.approx(25 + 1 + 4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 8), scale=st.floats(1e-3, 1e3))
def test_frechet_matches_the_general_matrix_root(seed, width, scale):
    a, b = (scale * normal(seed + i, width + 3, width) for i in (0, 1))
    cov_a, cov_b, mean = a.T @ a, b.T @ b, scale * normal(seed + 2, width)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = mean @ mean + np.trace(cov_a + cov_b - 2 * root)
    distance = gaussian_frechet_distance(mean, cov_a, np.zeros(width), cov_b)
    assert distance == pytest.approx(expected, rel=1e-6, abs=1e-6 * scale**2)
    assert gaussian_frechet_distance(mean, cov_a, mean, cov_a) <= 1e-6 * scale**2


def test_frechet_of_singular_covariances_is_exact():
    # Both Gaussians live on a line; the general root of the product is where scipy.linalg.sqrtm gives up digits.
    line, other = np.array([[3.0], [4.0]]) / 5, np.array([[1.0], [0.0]])
    distance = gaussian_frechet_distance([0, 0], 4 * line @ line.T, [0, 0], 9 * other @ other.T)
    assert distance == pytest.approx(4 + 9 - 2 * 2 * 3 * 0.6)


def test_frechet_of_samples_approaches_that_of_the_gaussians():
    x, y = normal(0, 20_000, 3), 2 * normal(1, 20_000, 3) + [1, 0, 0]
    assert frechet_distance(x, y) == pytest.approx(1 + 3, rel=0.05)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", 0.1, 0.0])
def test_frechet_with_fewer_rows_than_columns(shrinkage):
    near, far = normal(1, 20, 100), normal(2, 20, 100) + 1
    x = normal(0, 20, 100)
    distances = [frechet_distance(x, other, shrinkage=shrinkage) for other in (x, near, far)]
    assert np.isfinite(distances).all()
    assert distances[0] < 1e-6 < distances[1] < distances[2]


def test_shrinkage_mends_the_small_sample_error():
    """Both samples have the same distribution: the true distance is 0, and what is left is error."""
    x, y = normal(0, 30, 100), normal(1, 30, 100)
    assert frechet_distance(x, y) < 0.2 * frechet_distance(x, y, shrinkage=0.0)


def test_a_distance_at_its_extremes():
    assert proxy_a_distance(normal(0, 100, 5), normal(1, 100, 5) + 20) == 2.0
    same = [proxy_a_distance(normal(s, 200, 5), normal(s + 50, 300, 5)) for s in range(5)]
    assert max(same) < 0.35
    assert min(same) >= 0.0


def test_a_distance_of_two_shifted_gaussians_is_near_the_best_possible():
    # Two unit Gaussians a distance of 2 apart: the best error is Phi(-1) = 0.1587, so 2 (1 - 2 e) = 1.365.
    distance = proxy_a_distance(normal(0, 4000, 1), normal(1, 1000, 1) + 2)
    assert distance == pytest.approx(1.365, abs=0.06)


def test_a_distance_of_real_digits():
    digits, labels = load_digits(return_X_y=True)
    half = proxy_a_distance(digits[::2], digits[1::2])
    apart = proxy_a_distance(digits[labels < 5], digits[labels >= 5])
    assert half < 0.4 < apart
    assert apart == proxy_a_distance(digits[labels < 5], digits[labels >= 5])


def test_drift_by_hand():
    before = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0]), "head": torch.zeros(2), "buffer": torch.ones(1)}
    after = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0]), "head": torch.ones(2), "buffer": torch.zeros(1)}
    drift = weight_drift(before, after, {"head": 2, "a": 0, "b": 0})
    assert list(drift) == [0, 2]
    assert drift[0] == pytest.approx(1 / 5)
    assert drift[2] == float("inf")
    assert weight_drift(before, before, {"head": 0}) == {0: 0.0}


def test_drift_between_independent_weights_is_the_root_of_two():
    drift = weight_drift({"w": normal(0, 100, 100)}, {"w": normal(1, 100, 100)}, {"w": 0})
    assert drift[0] == pytest.approx(np.sqrt(2), rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.zeros((3, 2)), np.zeros((3, 4))), "2 and 4 columns"),
        (lambda: frechet_distance(np.zeros((1, 2)), np.zeros((3, 2))), "at least 2 rows"),
        (lambda: frechet_distance(np.zeros((3, 2)), np.zeros((3, 2)), shrinkage=2.0), "shrinkage"),
        (lambda: proxy_a_distance(np.zeros((1, 2)), np.zeros((3, 2))), "2 folds"),
        (lambda: weight_drift({}, {}, {"w": 0}), "'w' is missing from the weights before"),
        (lambda: weight_drift({"w": np.zeros(2)}, {"w": np.zeros(3)}, {"w": 0}), "changed its shape"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
