from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_lightning.analysis import knn_accuracy, linear_probe_accuracy
from tl_lightning.errors import UserError


def digits() -> tuple[np.ndarray, ...]:
    x, y = load_digits(return_X_y=True)
    return x[:400], y[:400], x[1000:1300], y[1000:1300]


def test_neighbours_by_hand():
    # By direction, not distance: the test row (1, 1) is far from all, and between two rows of class 1.
    train = np.array([[10.0, 0], [9, 11], [11, 9], [0, 10]])
    assert knn_accuracy(train, [0, 1, 1, 0], [[1.0, 1.0], [0.0, 1.0]], [1, 0], neighbours=1) == 1.0
    assert knn_accuracy(train, [0, 1, 1, 0], [[1.0, 1.0]], [0], neighbours=1) == 0.0
    # Of the three nearest of (0.1, 1) two are of class 1.
    assert knn_accuracy(train, [0, 1, 1, 0], [[0.1, 1.0]], [1], neighbours=3) == 1.0


def test_neighbours_match_an_explicit_search_on_real_digits():
    x, y, test_x, test_y = digits()
    similarity = (test_x / np.linalg.norm(test_x, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
    expected = (y[similarity.argmax(1)] == test_y).mean()
    assert knn_accuracy(x, y, test_x, test_y, neighbours=1) == pytest.approx(expected)
    assert knn_accuracy(torch.tensor(x), torch.tensor(y), test_x, test_y) > 0.85


def test_probe_on_real_digits_and_on_noise():
    x, y, test_x, test_y = digits()
    assert linear_probe_accuracy(x, y, test_x, test_y) > 0.85
    noise = np.random.default_rng(0).normal(size=(700, 20))
    assert linear_probe_accuracy(noise[:400], y, noise[400:], test_y) < 0.2


def test_probe_chooses_the_penalty_that_the_data_want():
    generator = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = generator.normal(size=(80, 300))
    x[:, 0] += 4 * y
    few, test = np.arange(40), np.arange(40, 80)
    accuracies = [linear_probe_accuracy(x[few], y[few], x[test], y[test], strengths=[c]) for c in (1e-4, 100.0)]
    chosen = linear_probe_accuracy(x[few], y[few], x[test], y[test], strengths=[1e-4, 100.0])
    assert chosen in accuracies


def test_wide_features_give_the_same_probe_as_plain_logistic_regression():
    x, y, test_x, test_y = digits()
    x, y = x[:50], y[:50]  # fewer rows than the 64 columns
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x, y)
    assert linear_probe_accuracy(x, y, test_x, test_y, strengths=[0.1]) == pytest.approx(plain.score(test_x, test_y))


def test_one_row_a_class_is_enough():
    x = np.eye(4)
    assert linear_probe_accuracy(x, [0, 1, 2, 3], x, [0, 1, 2, 3]) == 1.0
    assert knn_accuracy(x, [0, 1, 2, 3], x, [0, 1, 2, 3], neighbours=50) <= 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn_accuracy(np.zeros((2, 2)), [0, 1], np.zeros((2, 3)), [0, 1]), "2 and 3 columns"),
        (lambda: knn_accuracy(np.zeros((2, 2)), [0, 1], np.zeros((2, 2)), [0, 1], neighbours=0), "at least 1"),
        (lambda: linear_probe_accuracy(np.zeros((2, 2)), [1, 1], np.zeros((2, 2)), [0, 1]), "two classes"),
        (lambda: linear_probe_accuracy(np.eye(2), [0, 1], np.eye(2), [0, 1], strengths=[]), "strengths"),
        (lambda: linear_probe_accuracy(np.eye(2), [0], np.eye(2), [0, 1]), "training labels"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
