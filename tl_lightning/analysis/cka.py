"""Centred kernel alignment: how alike two representations of the same examples are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from tl_lightning.analysis.checks import Array, as_features, as_numpy, as_paired_features
from tl_lightning.errors import UserError

Matrix = npt.NDArray[np.float64]


def linear_cka(first: Array, second: Array) -> float:
    """Return the linear CKA of two representations.

    ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` with centred columns (Kornblith et al. 2019, "Similarity of neural network
    representations revisited"). It stays the same when either side is rotated or scaled as a whole, but not under
    other linear maps. With few rows it is biased towards 1: use ``minibatch_cka`` where rows are fewer than columns.

    Args:
        first: Activations [n, ...] of n examples; trailing dimensions are flattened.
        second: Activations [n, ...] of the same examples, of any width.

    Returns:
        A number in [0, 1]; not a number when either side is constant.
    """
    x, y = as_paired_features(first, second)
    x, y = _centred(x), _centred(y)
    if max(x.shape[1], y.shape[1]) <= len(x):
        cross, own_x, own_y = _squared(x.T @ y), x.T @ x, y.T @ y
    else:
        own_x, own_y = x @ x.T, y @ y.T
        cross = np.asarray((own_x * own_y).sum())
    return float(_aligned(cross, _squared(own_x), _squared(own_y)))


def minibatch_cka(first: Array, second: Array, *, batch_size: int = 256, seed: int = 0) -> float:
    """Return the linear CKA from unbiased estimates of HSIC, averaged over minibatches.

    Nguyen et al. 2021, "Do wide and deep networks learn the same things?", with the unbiased estimator of Song et al.
    2012: independent representations give 0 on average whatever their width and the size of the batches.

    Args:
        first: Activations [n, ...] of n examples, at least 4.
        second: Activations [n, ...] of the same examples, of any width.
        batch_size: Rows of a batch, at least 4; a last batch of fewer than 4 rows is left out.
        seed: Fixes the order of the rows.

    Returns:
        A number in [-1, 1], about 0 for unrelated representations; not a number when either side is constant.
    """
    return float(layerwise_cka({"first": first}, {"second": second}, batch_size=batch_size, seed=seed)[0, 0])


def layerwise_cka(
    first: Mapping[str, Array], second: Mapping[str, Array], *, batch_size: int = 256, seed: int = 0
) -> Matrix:
    """Return the minibatch CKA of every layer of one model with every layer of another.

    Args:
        first: Layer name to activations [n, ...]; the same n examples in all layers.
        second: The same for the other model; ``first`` again for the layers of one model.
        batch_size: See ``minibatch_cka``.
        seed: See ``minibatch_cka``.

    Returns:
        Matrix [layers of ``first``, layers of ``second``] in the order of the dicts, each as from ``minibatch_cka``.
    """
    rows = _common_rows(first, second)
    cross = np.zeros((len(first), len(second)))
    own_first, own_second = np.zeros((len(first), 1)), np.zeros((1, len(second)))
    for batch in _batches(rows, batch_size, seed):
        x, y = _stacked_kernels(first, batch), _stacked_kernels(second, batch)
        scale = 1.0 / (len(batch) * (len(batch) - 3))  # batches of unequal size weigh the same, as in the paper
        cross += scale * (x @ y.T)
        own_first += scale * (x**2).sum(1, keepdims=True)
        own_second += scale * (y**2).sum(1)
    return _aligned(cross, own_first, own_second)


def _common_rows(*models: Mapping[str, Array]) -> int:
    rows = [{name: len(as_numpy(values)) for name, values in layers.items()} for layers in models]
    numbers = {number for layers in rows for number in layers.values()}
    if len(numbers) != 1:
        named = " and ".join(map(str, rows))
        raise UserError(f"activations of the same examples are needed in all layers, but their numbers are {named}")
    return numbers.pop()


def _batches(rows: int, batch_size: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    if min(rows, batch_size) < 4:
        raise UserError(f"the unbiased CKA needs batches of at least 4 rows, not {min(rows, batch_size)}")
    order = np.random.default_rng(seed).permutation(rows)
    for start in range(0, rows, batch_size):
        if rows - start >= 4:
            yield order[start : start + batch_size]


def _stacked_kernels(layers: Mapping[str, Array], batch: npt.NDArray[np.int64]) -> Matrix:
    return np.stack(
        [_u_centred_kernel(as_features(as_numpy(v)[batch], f"activations of {k!r}")) for k, v in layers.items()]
    )


def _u_centred_kernel(features: Matrix) -> Matrix:
    """Return the linear kernel of a batch, centred so that inner products are unbiased HSIC (Szekely and Rizzo 2014).

    The inner product of two of them, over n (n - 3), equals the estimator of Song et al.; written like this it needs
    one pass for each layer and not one for each pair.
    """
    features = _centred(features)
    n = len(features)
    kernel = features @ features.T
    np.fill_diagonal(kernel, 0.0)
    sums = kernel.sum(1, keepdims=True) / (n - 2)
    kernel -= sums + sums.T - kernel.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(kernel, 0.0)
    return kernel.ravel()


def _centred(features: Matrix) -> Matrix:
    """Return the columns without their means; exactly 0 where a column is constant, whatever the rounding."""
    return np.where(np.ptp(features, axis=0) > 0, features - features.mean(0), 0.0)


def _squared(matrix: Matrix) -> Matrix:
    return np.asarray((matrix**2).sum())


def _aligned(cross: Matrix, own_first: Matrix, own_second: Matrix) -> Matrix:
    size = np.sqrt(own_first) * np.sqrt(own_second)
    return np.divide(cross, size, out=np.full(np.shape(cross), np.nan), where=size > 0)
