from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import spearmanr
from torch import nn

from tl_lightning.analysis import pointing_grids, pointing_share, rank_correlation, road
from tl_lightning.errors import UserError

VALUES = st.floats(-1e3, 1e3).map(lambda v: round(v, 2))


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.float64, (2, 3, 4, 4), elements=VALUES))
def test_rank_correlation_is_spearmans(maps):
    for i, value in enumerate(rank_correlation(maps[0], maps[1])):
        pair = maps[0, i].ravel(), maps[1, i].ravel()
        constant = min(np.ptp(p) for p in pair) == 0
        assert value == pytest.approx(0.0 if constant else spearmanr(*pair).statistic, abs=1e-9)


def test_rank_correlation_of_signed_and_of_absolute_maps():
    maps = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
    np.testing.assert_allclose(rank_correlation(maps, -maps), -1)
    np.testing.assert_allclose(rank_correlation(maps, -maps, absolute=True), 1)
    np.testing.assert_allclose(rank_correlation(torch.from_numpy(maps), np.exp(maps)), 1)


def labelled_images(classes: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Images whose pixels hold their own number."""
    labels = np.arange(count) % classes
    return np.broadcast_to(np.arange(count)[:, None, None, None], (count, 3, 4, 6)).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_grids_hold_the_target_in_its_cell_and_nowhere_else(classes):
    images, labels = labelled_images(classes)
    grids = pointing_grids(images, labels, 21, seed=3)
    assert grids.images.shape == (21, 3, 8, 12)
    assert np.bincount(grids.cells).max() - np.bincount(grids.cells).min() <= 1
    for g in range(21):
        corners = [grids.images[g, :, y : y + 4, x : x + 6] for y in (0, 4) for x in (0, 6)]
        for corner, member in zip(corners, grids.members[g], strict=True):
            assert (corner == member).all()
        shown = labels[grids.members[g]]
        assert (shown == grids.classes[g]).tolist() == [c == grids.cells[g] for c in range(4)]
        assert len(set(shown)) == min(4, classes)
    again = pointing_grids(images, labels, 21, seed=3)
    assert (again.members == grids.members).all()
    assert (pointing_grids(images, labels, 21, seed=4).members != grids.members).any()


def test_pointing_share_by_hand():
    maps = np.zeros((4, 4, 4))
    maps[0, 0, 3] = 3.0  # upper right
    maps[0, 3, 0] = 1.0  # lower left
    maps[1, 3, 3] = 2.0
    maps[1, :2, :2] = -5.0  # against the class: not counted
    maps[3] = 1.0
    np.testing.assert_allclose(pointing_share(maps, [1, 3, 2, 0]), [0.75, 1.0, 0.25, 0.25])
    np.testing.assert_allclose(pointing_share(maps, [2, 0, 2, 0]), [0.25, 0.0, 0.25, 0.25])


def test_a_map_that_always_prefers_one_place_scores_chance():
    images, labels = labelled_images(5)
    grids = pointing_grids(images, labels, 80)
    centre_of_the_first = np.zeros((80, 8, 12))
    centre_of_the_first[:, 2, 3] = 1
    assert pointing_share(centre_of_the_first, grids.cells).mean() == 0.25
    noise = np.random.default_rng(0).random((80, 8, 12))
    assert pointing_share(noise, grids.cells).mean() == pytest.approx(0.25, abs=0.02)


class Brightness(nn.Module):
    """Class 1 where the left half is bright; it looks nowhere else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = x[..., : x.shape[-1] // 2].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(left), 20 * (left - 0.5)], dim=1)


def bright_left() -> torch.Tensor:
    x = torch.zeros(3, 3, 16, 16)
    x[..., :8] = 0.8 + 0.1 * torch.rand(3, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    return x


def test_road_tells_the_right_map_from_the_wrong_and_from_the_random_one():
    x = bright_left()
    right = np.zeros((3, 16, 16))
    right[..., :8] = 1 + np.random.default_rng(0).random((3, 16, 8))
    random = np.random.default_rng(1).random((3, 16, 16))
    scores = {
        name: road(Brightness(), x, maps, [1, 1, 1]).combined
        for name, maps in {"right": right, "wrong": 2 - right, "random": random}.items()
    }
    assert (scores["right"] > 0.1).all()
    assert (scores["wrong"] < -0.1).all()
    assert np.abs(scores["random"]).max() < 0.05


def test_road_of_a_map_that_ranks_nothing_is_0():
    """Ties must not be broken by place: removing a contiguous half would look like knowledge."""
    turned = nn.Sequential(Turned(), Brightness())
    for model, x in ((Brightness(), bright_left()), (turned, bright_left().transpose(2, 3))):
        assert np.abs(road(model, x, np.zeros((3, 16, 16)), [1, 1, 1]).combined).max() < 0.05


class Turned(nn.Module):
    """Swaps rows and columns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(2, 3)


class Counter(nn.Module):
    """The class scores tell how many pixels were replaced; zero pixels stay where nothing was done."""

    def __init__(self, original: torch.Tensor) -> None:
        super().__init__()
        self.original = original
        self.changed: list[list[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.changed.append((x != self.original).any(1).sum((1, 2)).tolist())
        return torch.zeros(len(x), 2)


def test_road_removes_the_share_that_was_asked_for_also_from_maps_that_are_mostly_zero():
    x = bright_left()
    maps = np.zeros((3, 16, 16))
    maps[:, 4:6, 4:8] = 1.0
    counter = Counter(x)
    scores = road(counter, x, maps, [0, 0, 0], removed=(0.25, 0.5))
    changed = [n for n in counter.changed if n != [0, 0, 0]]
    np.testing.assert_allclose(changed, [[64] * 3, [64] * 3, [128] * 3, [128] * 3], atol=1)
    assert scores.most_relevant.shape == scores.least_relevant.shape == (2, 3)


def test_road_is_repeatable_and_leaves_model_and_random_numbers_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    x, maps = bright_left(), np.random.default_rng(0).random((3, 16, 16))
    before = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    first, second = (road(net, x, maps, [0, 1, 0]) for _ in range(2))
    np.testing.assert_array_equal(first.most_relevant, second.most_relevant)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(module.training for module in net.modules())
    assert all(torch.equal(v, before[1][k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_correlation(np.zeros((2, 4)), np.zeros((2, 5))), r"\[2, 4\] and \[2, 5\]"),
        (lambda: pointing_grids(np.zeros((4, 3, 2, 2)), [1, 1, 1, 1], 2), "two classes"),
        (lambda: pointing_grids(np.zeros((4, 3, 2, 2)), [0, 1, 1, 1], 0), "at least 1 grid"),
        (lambda: pointing_share(np.zeros((2, 5, 4)), [0, 1]), r"\[2, 5, 4\]"),
        (lambda: pointing_share(np.zeros((2, 4, 4)), [0, 4]), "0 .. 3"),
        (lambda: road(Brightness(), bright_left(), np.zeros((3, 8, 8)), [1, 1, 1]), "do not fit images"),
        (lambda: road(Brightness(), bright_left(), np.zeros((3, 16, 16)), [1, 1, 1], removed=[1.0]), "removed"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
