"""Linear heads of many seeds and learning rates on the same features, trained together by one matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tl_lightning.data.loader import EpochOrder


def train_heads(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    seeds: Sequence[int],
    rates: Sequence[float],
    epochs: int,
    batch_size: int = 64,
    weight_decay: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Train a linear head for every seed and rate with AdamW, each as it would be trained alone.

    The heads of a seed see the same batches and begin with the same weights. The sum of their losses is minimised:
    no head's gradient depends on another head.

    Args:
        features: Float [N, C].
        labels: int64 [N].
        classes: Number of classes K.
        seeds: S seeds of initial weights and batch order.
        rates: R learning rates.
        epochs: Passes over the features.
        batch_size: Rows a step.
        weight_decay: Of the weights and biases.

    Returns:
        Weights [S, R, K, C] and biases [S, R, K].
    """
    first = torch.stack([_initial(seed, classes, features.shape[1]) for seed in seeds])
    weights: list[Tensor] = [nn.Parameter(first.clone()) for _ in rates]
    biases: list[Tensor] = [nn.Parameter(torch.zeros(len(seeds), classes)) for _ in rates]
    groups: list[dict[str, Any]] = [
        {"params": [w, b], "lr": lr} for w, b, lr in zip(weights, biases, rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
    for epoch in range(epochs):
        orders = torch.stack([torch.from_numpy(EpochOrder(len(labels), True, s).order(epoch)) for s in seeds])
        for positions in orders.split(batch_size, dim=1):
            x, y = features[positions], labels[positions]  # [S, B, C], [S, B]
            logits = torch.baddbmm(torch.cat(biases, 1)[:, None], x, torch.cat(weights, 1).mT)  # [S, B, R * K]
            target = y[..., None].expand(*y.shape, len(rates)).flatten()
            losses = F.cross_entropy(logits.view(-1, classes), target, reduction="sum") / positions.shape[1]
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
    return torch.stack([w.detach() for w in weights], 1), torch.stack([b.detach() for b in biases], 1)


def _initial(seed: int, classes: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, width, generator=generator) * 0.01
