"""Scores that predict from features and labels, with no training, how well a source model transfers.

Higher means better in all of them. They rank sources for one target or targets for one source; no score wins everywhere
(Agostinelli et al. 2022, "How stable are transferability metrics evaluations?").
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.optimize import minimize_scalar
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from tl_lightning.analysis.checks import Array, Labels, as_features, as_labels
from tl_lightning.errors import UserError

Matrix = npt.NDArray[np.float64]

RATIOS = np.geomspace(1e-8, 1e8, 129)


def logme(features: Array, labels: Array) -> float:
    """Return LogME, the log of the maximum evidence of a Bayesian linear model for each class against the rest.

    You et al. 2021, "LogME: practical assessment of pre-trained models for transfer learning". The model of the 0/1
    target y is ``y ~ N(F w, 1 / beta)``, ``w ~ N(0, 1 / alpha)``; its log evidence per row is maximised over alpha and
    beta and averaged over the classes. Given ``alpha / beta`` the best beta has a closed form, so that one ratio is
    left to search: from 1e-8 to 1e8 times the mean square of the singular values, on a grid, then refined. The paper's
    fixed point finds the same maximum where it converges.

    Args:
        features: Features [n, d].
        labels: Classes [n].

    Returns:
        A number of any sign; higher is better. Where the features explain the labels without error the evidence has
        no maximum, and the value at the smallest ratio is returned.
    """
    f = as_features(features)
    y = as_labels(labels, len(f))
    u, s = _left_singular_vectors(f)
    power = s**2
    scores = [_max_evidence((y == c).astype(np.float64), u, power) for c in range(y.max() + 1)]
    return float(np.mean(scores))


def _left_singular_vectors(matrix: Matrix) -> tuple[Matrix, npt.NDArray[np.float64]]:
    """Return the left singular vectors [n, rank] and the singular values [rank] that are not rounding."""
    u, s, _ = linalg.svd(matrix, full_matrices=False)
    kept = s > s.max(initial=0.0) * max(matrix.shape) * np.finfo(np.float64).eps
    return u[:, kept], s[kept]


def _max_evidence(target: npt.NDArray[np.float64], u: Matrix, power: npt.NDArray[np.float64]) -> float:
    """Return the largest log evidence per row of one target, given the left singular vectors and squared values."""
    n = len(target)
    along = (u.T @ target) ** 2
    beside = max(float(target @ target - along.sum()), 0.0)

    def loss(log_ratio: float) -> float:
        shrink = np.exp(log_ratio) / (power + np.exp(log_ratio))
        misfit = max(beside + float(along @ shrink), n * np.finfo(np.float64).eps ** 2)
        return 0.5 * (n * np.log(2 * np.pi * misfit / n) + n - float(np.log(shrink).sum())) / n

    grid = np.log(RATIOS * (power.mean() if len(power) else 1.0))
    best = int(np.argmin([loss(t) for t in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    refined = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return -min(loss(grid[best]), float(refined.fun))


def leep(source_probabilities: Array, labels: Array) -> float:
    """Return LEEP, the log expected empirical prediction.

    Nguyen et al. 2020, "LEEP: a new measure to evaluate transferability of learned representations": the mean log
    likelihood of the labels under the classifier that draws a source class z from the source model's output and then a
    target class from the empirical ``P(y | z)``.

    Args:
        source_probabilities: Softmax output [n, source classes] of the source model on the target's images.
        labels: Target classes [n].

    Returns:
        A number up to 0; never below the negative entropy of the labels (in nats), which a source model of constant
        output gets.

    Raises:
        UserError: The rows are not probabilities.
    """
    theta = as_features(source_probabilities, "source_probabilities")
    if theta.min() < 0 or np.abs(theta.sum(1) - 1).max() > 1e-3:
        raise UserError("source_probabilities must be rows of probabilities that sum to 1 (softmax the logits first)")
    return _leep(theta, as_labels(labels, len(theta)))


def _leep(theta: Matrix, y: Labels) -> float:
    joint = np.eye(y.max() + 1)[y].T @ theta
    marginal = joint.sum(0)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    return float(np.log((conditional[y] * theta).sum(1)).mean())


def nleep(features: Array, labels: Array, *, variance: float = 0.8, clusters: int = 5, seed: int = 0) -> float:
    """Return N-LEEP: LEEP with the clusters of a Gaussian mixture in place of the source classes.

    Li et al. 2021, "Ranking neural checkpoints": it needs no source classifier. The features are reduced by principal
    components first. The mixture has diagonal covariances here, along the principal axes: the full ones of the paper
    have more parameters than small target sets have values.

    Args:
        features: Features [n, d].
        labels: Target classes [n].
        variance: Share of the variance that the principal components keep, in (0, 1).
        clusters: Clusters for each target class (5 in the paper), as far as there are 2 rows for each.
        seed: Fixes the initial clusters.

    Returns:
        A number up to 0; higher is better.
    """
    f = as_features(features)
    y = as_labels(labels, len(f))
    if not 0 < variance < 1:
        raise UserError(f"variance must lie in (0, 1), not {variance}")
    if np.ptp(f, axis=0).max() == 0:
        raise UserError("features are the same in every row")
    reduced = PCA(variance, svd_solver="full").fit_transform(f)
    reduced /= reduced[:, 0].std()
    components = max(1, min(clusters * int(y.max() + 1), len(f) // 2))
    mixture = GaussianMixture(components, covariance_type="diag", reg_covar=1e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the score moves little after the default 100 rounds
        posterior = mixture.fit(reduced).predict_proba(reduced)
    return _leep(posterior, y)


def h_score(features: Array, labels: Array) -> float:
    """Return the H-score ``tr(cov(f)^-1 cov(E[f | y]))``.

    Bao et al. 2019, "An information-theoretic approach to transferability in task transfer learning". It measures the
    spread between the classes in units of the total spread. With few rows it saturates at its upper bound: use
    ``regularised_h_score`` where rows are not many times the columns.

    Args:
        features: Features [n, d].
        labels: Classes [n].

    Returns:
        A number in [0, min(classes - 1, d)]; higher is better. Directions without variance count nothing.
    """
    f = as_features(features)
    y = as_labels(labels, len(f))
    u, _ = _left_singular_vectors(f - f.mean(0))
    indicator = np.eye(y.max() + 1)[y] / np.sqrt(np.bincount(y))
    return float(((indicator.T @ u) ** 2).sum())  # the same trace after cancelling: no matrix [d, d] is needed


def regularised_h_score(features: Array, labels: Array) -> float:
    """Return the H-score with the covariance shrunk by Ledoit-Wolf.

    Ibrahim et al. 2021, "Newer is not always better: rethinking transferability metrics, their peculiarities,
    stability and performance": ``tr(cov_a(f)^-1 (1 - a) cov(E[f | y]))`` with shrinkage a chosen from the data.

    Args:
        features: Features [n, d].
        labels: Classes [n].

    Returns:
        A number in [0, min(classes - 1, d)]; higher is better.
    """
    f = as_features(features)
    y = as_labels(labels, len(f))
    centred = f - f.mean(0)
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    if np.trace(covariance) == 0:
        return 0.0
    spread = (1.0 - shrinkage) * _between_classes(centred, y)
    return float(np.trace(linalg.solve(covariance, spread, assume_a="pos")))


def _between_classes(centred: Matrix, y: Labels) -> Matrix:
    """Return the covariance [d, d] of the class means, each weighted by the size of its class."""
    counts = np.bincount(y)
    means = np.stack([centred[y == c].mean(0) for c in range(len(counts))])
    return (means * (counts / len(y))[:, None]).T @ means
