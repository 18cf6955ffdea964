"""How alike two sets of features or weights are: CKA, weight drift, Frechet distance, proxy A-distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import linalg
from sklearn.covariance import empirical_covariance, ledoit_wolf, shrunk_covariance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_lightning.analysis.checks import Array, as_features, as_numpy
from tl_lightning.errors import UserError

Matrix = npt.NDArray[np.float64]


def weight_drift(
    before: Mapping[str, Array], after: Mapping[str, Array], stage_of: Mapping[str, int]
) -> dict[int, float]:
    """Return how far the weights of each stage moved, relative to where they began.

    The drift of a stage is ``|after - before| / |before|`` with the Euclidean norm over all its parameters together:
    0 for a stage that did not move, about 1.41 for one replaced by independent weights of the same size (distance in
    parameter space, Neyshabur et al. 2020, "What is being transferred in transfer learning?").

    Args:
        before: Weights by parameter name, for example a ``state_dict``; other entries are ignored.
        after: The same weights later.
        stage_of: Parameter name to stage, as from ``Stages.parameter_stage()``.

    Returns:
        Stage to drift, in the order of the stages; infinity for a stage that was all zero and moved.

    Raises:
        UserError: A parameter of ``stage_of`` is missing, or its shape has changed.
    """
    moved: dict[int, float] = {}
    size: dict[int, float] = {}
    for name, stage in stage_of.items():
        for weights, which in ((before, "before"), (after, "after")):
            if name not in weights:
                raise UserError(f"parameter {name!r} is missing from the weights {which} training")
        old, new = (as_numpy(w[name]).astype(np.float64) for w in (before, after))
        if old.shape != new.shape:
            raise UserError(f"parameter {name!r} changed its shape from {list(old.shape)} to {list(new.shape)}")
        moved[stage] = moved.get(stage, 0.0) + float(((new - old) ** 2).sum())
        size[stage] = size.get(stage, 0.0) + float((old**2).sum())
    return {stage: _ratio(moved[stage], size[stage]) for stage in sorted(moved)}


def _ratio(moved: float, size: float) -> float:
    if moved == 0:
        return 0.0
    return float(np.sqrt(moved / size)) if size > 0 else float("inf")


def frechet_distance(
    first: Array, second: Array, *, shrinkage: float | Literal["ledoit_wolf"] = "ledoit_wolf"
) -> float:
    """Return the squared Frechet distance between the Gaussians fitted to two sets of features.

    Heusel et al. 2017 (FID) with features of any network: see ``gaussian_frechet_distance`` for the formula. With few
    rows the empirical covariance is singular and its estimate noisy, so it is shrunk towards a multiple of the
    identity; the Ledoit-Wolf weight (2004) goes to 0 as the rows grow. The estimate still depends on the number of
    rows (Chong and Forsyth 2020): compare only distances from equally many.

    Args:
        first: Features [n, d].
        second: Features [m, d].
        shrinkage: Weight of the identity in [0, 1], or ``"ledoit_wolf"`` to choose it for each set from its data.

    Returns:
        A number from 0; 0 for equal means and covariances. It grows with the scale of the features squared.
    """
    x, y = as_features(first, "the first features"), as_features(second, "the second features")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features of one network are needed, but there are {x.shape[1]} and {y.shape[1]} columns")
    return gaussian_frechet_distance(x.mean(0), _covariance(x, shrinkage), y.mean(0), _covariance(y, shrinkage))


def _covariance(features: Matrix, shrinkage: float | Literal["ledoit_wolf"]) -> Matrix:
    if len(features) < 2:
        raise UserError("a covariance needs at least 2 rows")
    if shrinkage == "ledoit_wolf":
        return ledoit_wolf(features)[0]
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise UserError(f"shrinkage must lie in [0, 1] or be 'ledoit_wolf', not {shrinkage!r}")
    return shrunk_covariance(empirical_covariance(features), shrinkage)


def gaussian_frechet_distance(
    mean_a: npt.ArrayLike, covariance_a: npt.ArrayLike, mean_b: npt.ArrayLike, covariance_b: npt.ArrayLike
) -> float:
    """Return the squared Frechet (2-Wasserstein) distance between two Gaussians.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Dowson and Landau 1982). The trace of the matrix root is the
    sum of the singular values of ``C_a^(1/2) C_b^(1/2)``: exact and real for singular covariances too, where the
    general matrix root is not.

    Args:
        mean_a: Mean [d] of the one.
        covariance_a: Covariance [d, d], symmetric and positive semidefinite.
        mean_b: Mean [d] of the other.
        covariance_b: Its covariance [d, d].
    """
    difference = np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64)
    a, b = np.atleast_2d(covariance_a, covariance_b)
    root = float(linalg.svdvals(_symmetric_root(a) @ _symmetric_root(b)).sum())
    return max(0.0, float(difference @ difference + np.trace(a) + np.trace(b) - 2 * root))


def _symmetric_root(matrix: Matrix) -> Matrix:
    values, vectors = linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def proxy_a_distance(source: Array, target: Array, *, seed: int = 0, folds: int = 2) -> float:
    """Return the proxy A-distance between two domains: how well a classifier tells them apart.

    ``2 (1 - 2 e)`` with the held-out error ``e`` of a logistic regression on standardised features (Ben-David et al.
    2007, "Analysis of representations for domain adaptation"), cross-validated; the error is the mean of the two
    domains' errors, so unequal sizes do not matter.

    Args:
        source: Features [n, d].
        target: Features [m, d] of the same network.
        seed: Fixes the folds.
        folds: Number of folds; each domain needs as many rows.

    Returns:
        A number in [0, 2]: 0 for domains that the classifier cannot tell apart (an error above one half counts as
        one half), 2 for domains that it separates without error.
    """
    x, y = as_features(source, "the source features"), as_features(target, "the target features")
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features of one network are needed, but there are {x.shape[1]} and {y.shape[1]} columns")
    if min(len(x), len(y)) < folds:
        raise UserError(f"{folds} folds need as many rows in each domain, but there are {len(x)} and {len(y)}")
    domain = np.repeat([0, 1], [len(x), len(y)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    guess = cross_val_predict(classifier, np.concatenate([x, y]), domain, cv=splits)
    error = float(np.mean([(guess[domain == d] != d).mean() for d in (0, 1)]))
    return 2.0 * (1.0 - 2.0 * min(error, 0.5))
