from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import entropy, multivariate_normal
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from tl_lightning.analysis import h_score, leep, logme, nleep, regularised_h_score
from tl_lightning.errors import UserError


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def classes(seed: int, rows: int, count: int = 3) -> np.ndarray:
    return np.concatenate([np.arange(count), np.random.default_rng(seed).integers(0, count, rows - count)])


def evidence_by_optimiser(features: np.ndarray, labels: np.ndarray) -> float:
    """The evidence is the density of y under N(0, 1/beta I + 1/alpha F F^T); a generic optimiser finds its maximum."""
    scores = []
    for c in np.unique(labels):
        y = (labels == c).astype(float)

        def loss(log_precisions: np.ndarray, y: np.ndarray = y) -> float:
            alpha, beta = np.exp(np.clip(log_precisions, -8, 18))
            covariance = np.eye(len(y)) / beta + features @ features.T / alpha
            return -multivariate_normal.logpdf(y, np.zeros(len(y)), covariance) / len(y)

        starts = [(a, b) for a in (-3, 1, 5) for b in (0, 3)]
        scores.append(-min(minimize(loss, s, method="Nelder-Mead", options={"xatol": 1e-6}).fun for s in starts))
    return float(np.mean(scores))


@pytest.mark.parametrize(("rows", "width", "signal"), [(30, 4, 1.0), (30, 4, 0.0), (15, 25, 1.0), (40, 1, 3.0)])
def test_logme_is_the_largest_evidence(rows, width, signal):
    y = classes(1, rows)
    f = normal(0, rows, width) + signal * y[:, None]
    assert logme(f, y) == pytest.approx(evidence_by_optimiser(f, y), abs=2e-5)


def logme_by_fixed_point(f: np.ndarray, y: np.ndarray) -> float:
    """The iteration of You et al. 2021, algorithm 1, on the full matrices."""
    (n, d), gram, scores = f.shape, f.T @ f, []
    for c in np.unique(y):
        t, alpha, beta = (y == c).astype(float), 1.0, 1.0
        for _ in range(2000):
            a = alpha * np.eye(d) + beta * gram
            m = beta * np.linalg.solve(a, f.T @ t)
            gamma = np.trace(np.linalg.solve(a, beta * gram))
            alpha, beta = gamma / (m @ m), (n - gamma) / ((f @ m - t) ** 2).sum()
        a = alpha * np.eye(d) + beta * gram
        m = beta * np.linalg.solve(a, f.T @ t)
        score = n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi) - np.linalg.slogdet(a)[1]
        scores.append((score - beta * ((f @ m - t) ** 2).sum() - alpha * m @ m) / (2 * n))
    return float(np.mean(scores))


def test_logme_agrees_with_the_fixed_point_of_the_paper_on_real_digits():
    x, y = load_digits(return_X_y=True)
    x, y = StandardScaler().fit_transform(x)[:600, 10:30], y[:600]
    assert logme(x, y) == pytest.approx(logme_by_fixed_point(x, y), abs=1e-6)


def test_logme_prefers_features_that_explain_the_labels():
    y = classes(0, 200)
    noise = normal(1, 200, 10)
    scores = [logme(noise + strength * np.eye(3, 10)[y], y) for strength in (0.0, 1.0, 3.0)]
    assert scores == sorted(scores)
    assert np.isfinite(logme(np.eye(3)[y], y))
    assert logme(np.eye(3)[y], y) > scores[-1]
    assert np.isfinite(logme(np.zeros((200, 4)), y))


def test_leep_by_hand():
    # P(y=0, z) = (.9 + .5) / 4, (.1 + .5) / 4; P(y=1, z) = (.2 + .4) / 4, (.8 + .6) / 4; both z have P(z) = 1/2.
    theta = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.4, 0.6]])
    expected = [0.7 * 0.9 + 0.3 * 0.1, 0.5, 0.3 * 0.2 + 0.7 * 0.8, 0.3 * 0.4 + 0.7 * 0.6]
    assert leep(theta, [0, 0, 1, 1]) == pytest.approx(np.log(expected).mean())


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(4, 40), width=st.integers(1, 12), sharp=st.floats(0, 50), seed=st.integers(0, 10_000))
def test_leep_lies_between_minus_the_entropy_of_the_labels_and_0(rows, width, sharp, seed):
    y = classes(seed, rows)
    logits = sharp * normal(seed, rows, width)
    theta = np.exp(logits - logits.max(1, keepdims=True))
    score = leep(theta / theta.sum(1, keepdims=True), y)
    assert -entropy(np.bincount(y) / rows) - 1e-9 <= score <= 1e-12


def test_leep_at_its_bounds():
    y = classes(0, 30)
    assert leep(np.eye(3)[y], y) == 0.0
    assert leep(np.full((30, 4), 0.25), y) == pytest.approx(-entropy(np.bincount(y) / 30))


def test_nleep_ranks_clustered_features_above_noise_and_needs_no_source_classes():
    y = classes(0, 200)
    noise = normal(1, 200, 10)
    scores = [nleep(noise + strength * np.eye(3, 10)[y], y) for strength in (0.0, 2.0, 20.0)]
    assert scores == sorted(scores)
    assert scores[-1] > -0.01
    assert scores[0] > -np.log(3) - 1e-9
    assert scores[0] == nleep(noise, y)


def test_h_score_by_hand():
    # f = -1, -1, 1, 3 and classes 0 0 1 1: variance 2.75, class means -1 and 2 around 0.5, so 2.25 / 2.75.
    assert h_score(np.array([-1.0, -1, 1, 3]), [0, 0, 1, 1]) == pytest.approx(2.25 / 2.75)
    # Two uncorrelated columns: the scores add up.
    f = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    assert h_score(f, [0, 0, 1, 1]) == pytest.approx(1.0)
    assert h_score(f, [0, 1, 2, 3]) == pytest.approx(2.0)


def _h_score_by_inverse(f: np.ndarray, y: np.ndarray) -> float:
    means = np.stack([f[y == c].mean(0) for c in y])
    return float(np.trace(np.linalg.inv(np.cov(f.T)) @ np.cov(means.T)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(2, 10), scale=st.floats(1e-4, 1e4))
def test_h_score_is_bounded_and_invariant_under_invertible_maps(seed, width, scale):
    y = classes(seed, 60)
    f = normal(seed, 60, width) + y[:, None]
    score = h_score(f, y)
    assert score == pytest.approx(_h_score_by_inverse(f, y), rel=1e-8)
    assert 0 <= score <= 2 + 1e-9
    assert h_score(scale * f @ normal(seed + 1, width, width) + 3, y) == pytest.approx(score, rel=1e-4)
    assert regularised_h_score(f, y) <= score + 1e-9


def test_regularised_h_score_is_the_plain_one_with_many_rows():
    y = classes(0, 20_000)
    f = normal(1, 20_000, 5) * [1, 2, 3, 4, 5] + np.eye(3, 5)[y]
    assert regularised_h_score(f, y) == pytest.approx(h_score(f, y), rel=0.01)


def test_only_the_regularised_h_score_tells_noise_from_signal_when_rows_are_few():
    y = classes(0, 30)
    noise = normal(1, 30, 200)
    signal = noise + 6 * np.eye(3, 200)[y]
    assert h_score(noise, y) == pytest.approx(2.0) == h_score(signal, y)  # saturated
    assert regularised_h_score(signal, y) > 1.5 * regularised_h_score(noise, y)
    assert regularised_h_score(np.zeros((30, 4)), y) == 0.0 == h_score(np.zeros((30, 4)), y)


def test_every_score_ranks_real_features_above_shuffled_ones():
    x, y = load_digits(return_X_y=True)
    x, y = x[:500], y[:500]
    shuffled = np.random.default_rng(0).permutation(y)
    for score in (logme, h_score, regularised_h_score, nleep):
        assert score(x, y) > score(x, shuffled), score.__name__


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: leep(np.array([[2.0, -1], [0, 1]]), [0, 1]), "softmax the logits"),
        (lambda: logme(np.zeros((3, 2)), [0, 1]), "each of the 3 rows"),
        (lambda: logme(np.zeros((3, 2)), [1, 1, 1]), "at least two classes"),
        (lambda: logme(np.zeros((2, 2)), [0.5, 1]), "whole numbers"),
        (lambda: h_score(np.array([[np.inf], [1]]), [0, 1]), "not finite"),
        (lambda: nleep(np.ones((4, 2)), [0, 1, 0, 1]), "the same in every row"),
        (lambda: logme(np.zeros((0, 2)), []), "at least one row"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
