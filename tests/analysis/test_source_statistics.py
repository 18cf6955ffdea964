"""Distance to the source from BatchNorm statistics: closed forms, zero at the source, growth with a shift."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tl_lightning.analysis import gaussian_frechet_distance
from tl_lightning.analysis.source_statistics import diagonal_frechet_distance, source_distances
from tl_lightning.errors import UserError


@pytest.fixture
def trained() -> tuple[nn.Sequential, torch.Tensor]:
    """A network whose BatchNorm statistics are exactly those of some images, and the images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Conv2d(4, 5, 3))
    model.append(nn.BatchNorm2d(5, momentum=None))
    images = torch.rand(40, 3, 12, 12)
    with torch.no_grad():
        for layer in (1, 4):  # one after the other: the later one sees the earlier one in evaluation mode
            for norm in (model[1], model[4]):
                norm.eval()
            model[layer].train()
            model(images)
    return model.eval(), images


def test_the_diagonal_distance_is_that_of_diagonal_gaussians() -> None:
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(2, 6)), rng.uniform(0.1, 3, size=(2, 6))
    full = gaussian_frechet_distance(means[0], np.diag(variances[0]), means[1], np.diag(variances[1]))
    assert diagonal_frechet_distance(means[0], variances[0], means[1], variances[1]) == pytest.approx(full)
    assert diagonal_frechet_distance([1.0], [4.0], [3.0], [9.0]) == pytest.approx(2.0**2 + (2 - 3) ** 2)


def test_the_source_itself_is_at_distance_zero_and_batches_do_not_matter(trained) -> None:
    model, images = trained
    distances = source_distances(model, images)
    assert list(distances) == ["1", "4"]
    assert max(distances.values()) < 1e-3  # running variances divide by n - 1
    in_batches = source_distances(model, images.split(7))
    assert list(in_batches.values()) == pytest.approx(list(distances.values()), rel=1e-4, abs=1e-7)


def test_the_first_layer_has_the_closed_form(trained) -> None:
    model, images = trained
    shifted = 0.5 * images + 0.3
    entering = model[0](shifted).detach().double().transpose(0, 1).flatten(1)
    norm = model[1]
    expected = diagonal_frechet_distance(
        norm.running_mean, norm.running_var, entering.mean(1), entering.var(1, unbiased=False)
    ) / float(norm.running_var.sum())
    assert source_distances(model, shifted)["1"] == pytest.approx(expected, rel=1e-5)


def test_it_grows_with_the_shift_and_counts_the_normalisation_in(trained) -> None:
    model, images = trained
    means = [np.mean(list(source_distances(model, images + shift).values())) for shift in (0.0, 0.2, 0.6)]
    assert means[0] < means[1] < means[2]
    back = source_distances(model, images + 0.6, lambda batch: batch - 0.6)
    assert max(back.values()) < 1e-3


def test_the_model_is_left_as_it_is(trained) -> None:
    model, images = trained
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source_distances(model, images + 1)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1]._forward_pre_hooks


def test_a_network_without_statistics_is_refused() -> None:
    with pytest.raises(UserError, match="BatchNorm"):
        source_distances(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), torch.rand(4, 3, 8, 8))
    norm = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(UserError, match="two images"):
        source_distances(norm, torch.rand(1, 3))
