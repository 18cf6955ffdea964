"""Linear heads that are trained together are those that are trained alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tl_lightning.data.loader import EpochOrder
from tl_lightning.features import train_heads

SEEDS, RATES = (3, 5), (1e-3, 1e-2, 1e-1)


def alone(features, labels, seed, rate, classes, epochs, batch_size):
    head = nn.Linear(features.shape[1], classes)
    head.weight.data = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.01
    head.bias.data.zero_()
    optimizer = torch.optim.AdamW(head.parameters(), rate, weight_decay=0.01)
    for epoch in range(epochs):
        for rows in torch.from_numpy(EpochOrder(len(labels), True, seed).order(epoch)).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()
    return head


@pytest.mark.parametrize(("classes", "count", "batch_size"), [(2, 50, 16), (5, 33, 33), (3, 7, 1)])
def test_each_head_is_the_one_trained_alone(classes, count, batch_size):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 12, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    weights, biases = train_heads(features, labels, classes, seeds=SEEDS, rates=RATES, epochs=3, batch_size=batch_size)
    assert weights.shape == (2, 3, classes, 12)
    assert biases.shape == (2, 3, classes)
    for s, seed in enumerate(SEEDS):
        for r, rate in enumerate(RATES):
            head = alone(features, labels, seed, rate, classes, 3, batch_size)
            torch.testing.assert_close(weights[s, r], head.weight.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(biases[s, r], head.bias.detach(), rtol=1e-4, atol=1e-5)


def test_heads_learn_what_can_be_separated():
    labels = torch.arange(90) % 3
    features = torch.eye(3)[labels] + 0.1 * torch.randn(90, 3, generator=torch.Generator().manual_seed(1))
    weights, biases = train_heads(features, labels, 3, seeds=[0], rates=[0.1], epochs=20)
    assert ((features @ weights[0, 0].T + biases[0, 0]).argmax(1) == labels).all()
