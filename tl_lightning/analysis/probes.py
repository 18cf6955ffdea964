"""Accuracy of simple classifiers on frozen features: k nearest neighbours and the linear probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from tl_lightning.analysis.checks import Array, Labels, as_classes, as_features
from tl_lightning.errors import UserError

Matrix = npt.NDArray[np.float64]


def knn_accuracy(
    train_features: Array, train_labels: Array, test_features: Array, test_labels: Array, *, neighbours: int = 5
) -> float:
    """Return the accuracy of k nearest neighbours by cosine similarity.

    The usual test of features without any training (Wu et al. 2018, "Unsupervised feature learning via non-parametric
    instance discrimination"), with plain majority votes.

    Args:
        train_features: Features [n, d].
        train_labels: Classes [n].
        test_features: Features [m, d].
        test_labels: Classes [m].
        neighbours: Number of neighbours; all n where n is smaller.

    Returns:
        Fraction of the test rows that are right, in [0, 1].
    """
    x, y, test_x, test_y = _parts(train_features, train_labels, test_features, test_labels)
    if neighbours < 1:
        raise UserError(f"neighbours must be at least 1, not {neighbours}")
    classifier = KNeighborsClassifier(min(neighbours, len(x)), metric="cosine", algorithm="brute")
    return float(classifier.fit(x, y).score(test_x, test_y))


def linear_probe_accuracy(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    strengths: Sequence[float] = (0.001, 0.01, 0.1, 1.0),
    seed: int = 0,
) -> float:
    """Return the accuracy of logistic regression on standardised features (Kornblith et al. 2019).

    Args:
        train_features: Features [n, d].
        train_labels: Classes [n], at least two different ones.
        test_features: Features [m, d].
        test_labels: Classes [m].
        strengths: Inverse strengths of the L2 penalty (``C``) to choose from by three-fold cross-validation on the
            training part; the geometric mean of them where a class has a single row.
        seed: Fixes the folds.

    Returns:
        Fraction of the test rows that are right, in [0, 1].
    """
    x, y, test_x, test_y = _parts(train_features, train_labels, test_features, test_labels)
    counts = np.unique(y, return_counts=True)[1]
    if len(counts) < 2:
        raise UserError("a linear probe needs at least two classes in the training part")
    if len(strengths) == 0 or min(strengths) <= 0:
        raise UserError(f"strengths must be numbers above 0, not {list(strengths)}")
    x, test_x = _standardised_in_row_space(x, test_x)
    model = LogisticRegression(max_iter=1000)
    folds = min(3, int(counts.min()))
    if len(strengths) > 1 and folds > 1:
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"C": list(strengths)}, cv=splits)
    else:
        model.set_params(C=float(np.exp(np.mean(np.log(strengths)))))
    return float(model.fit(x, y).score(test_x, test_y))


def _standardised_in_row_space(x: Matrix, test_x: Matrix) -> tuple[Matrix, Matrix]:
    """Return standardised features in coordinates of the space that the training rows span.

    With an L2 penalty the weights lie in that space, so the classifier is the same, with n columns in place of d.
    """
    scaler = StandardScaler().fit(x)
    x, test_x = scaler.transform(x), scaler.transform(test_x)
    if x.shape[1] <= len(x):
        return x, test_x
    axes = np.linalg.svd(x, full_matrices=False)[2].T
    return x @ axes, test_x @ axes


def _parts(x: Array, y: Array, test_x: Array, test_y: Array) -> tuple[Matrix, Labels, Matrix, Labels]:
    train, test = as_features(x, "the training features"), as_features(test_x, "the test features")
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"features of one network are needed, but there are {train.shape[1]} and {test.shape[1]} columns"
        )
    return (
        train,
        as_classes(y, len(train), "the training labels"),
        test,
        as_classes(test_y, len(test), "the test labels"),
    )
