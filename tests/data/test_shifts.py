"""Corruptions are deterministic for an image whatever its batch, rise with the severity and keep shape and type."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from tl_lightning.data.shifts import CORRUPTIONS, SHIFTS, corrupt
from tl_lightning.errors import UserError


def photographs(size: int) -> torch.Tensor:
    """Twelve square crops of scikit-learn's two photographs, uint8 [12, 3, size, size]."""
    crops = []
    for image in load_sample_images().images:
        for left in range(0, 6 * 80, 80):
            crop = Image.fromarray(image[100 : 100 + 224, left : left + 224])
            crops.append(torch.from_numpy(np.asarray(crop.resize((size, size))).copy()).permute(2, 0, 1))
    return torch.stack(crops)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_rises_with_its_severity(name: str, size: int) -> None:
    images = photographs(size)
    differences = []
    for severity in range(1, 6):
        shifted = corrupt(images, name, severity)
        assert shifted.shape == images.shape
        assert shifted.dtype == torch.uint8
        differences.append((shifted.float() - images.float()).abs().mean().item())
    assert differences[0] > 0
    assert differences == sorted(differences), differences
    assert differences[-1] > 1.2 * differences[0]


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    images = photographs(40)
    whole = corrupt(images, name, 4, seed=7)
    for sizes in ([1] * 12, [5, 7], [2, 3, 7]):
        indices = torch.arange(12).split(sizes)
        parts = [corrupt(images[some], name, 4, seed=7, indices=some) for some in indices]
        assert torch.equal(torch.cat(parts), whole)
    backwards = torch.arange(11, -1, -1)
    assert torch.equal(corrupt(images[backwards], name, 4, seed=7, indices=backwards)[backwards], whole)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "block_shuffle"]
)
def test_draws_differ_by_seed_and_by_image(name: str) -> None:
    images = photographs(32)[:1].repeat(3, 1, 1, 1)
    shifted = corrupt(images, name, 3, seed=0)
    assert not torch.equal(shifted[0], shifted[1])
    assert not torch.equal(shifted, corrupt(images, name, 3, seed=1))
    assert torch.equal(shifted, corrupt(images, name, 3, seed=0))


@pytest.mark.parametrize("quality", [(32, 5, 40), (224, 4, 10)])
def test_jpeg_agrees_with_a_jpeg_file(quality: tuple[int, int, int]) -> None:
    size, severity, number = quality
    images = photographs(size)
    ours = corrupt(images, "jpeg_compression", severity).float()
    for image, mine in zip(images, ours, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=number)
        theirs = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1).float()
        assert (mine - theirs).abs().mean() < 0.35 * (theirs - image.float()).abs().mean()


def test_noise_has_the_published_strength() -> None:
    grey = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    assert abs(corrupt(grey, "gaussian_noise", 1).float().std().item() / 255 - 0.04) < 0.001
    salted = corrupt(grey, "impulse_noise", 5)
    assert abs(((salted == 0) | (salted == 255)).float().mean().item() - 0.07) < 0.01
    assert abs(corrupt(grey, "shot_noise", 1).float().std().item() / 255 - (0.502 / 500) ** 0.5) < 0.002


@pytest.mark.parametrize(("severity", "displacement"), [(1, 0.01), (3, 0.03)])
def test_elastic_displacement_has_the_stated_size(severity: int, displacement: float) -> None:
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8).expand(64, 1, 32, 32)
    moved = (corrupt(ramp, "elastic_transform", severity).float() - ramp.float())[..., 8:-8, 8:-8]
    assert abs(moved.std().item() / (255 / 31) / (displacement * 32) - 1) < 0.15


def test_contrast_keeps_the_mean_and_brightness_the_hue() -> None:
    images = photographs(32)
    assert (corrupt(images, "contrast", 3).float().mean() - images.float().mean()).abs() < 0.5
    dark = (images // 3).clamp(min=1)
    bright = corrupt(dark, "brightness", 3).float()
    assert ((bright.amax(1) - dark.float().amax(1)) / 255 - 0.15).abs().max() < 0.01


def test_block_shuffling_keeps_the_pixels_and_inversion_undoes_itself() -> None:
    images = photographs(33)
    shuffled = corrupt(images, "block_shuffle", 2)
    assert torch.equal(shuffled.flatten(2).sort(-1).values, images.flatten(2).sort(-1).values)
    assert torch.equal(corrupt(corrupt(images, "invert"), "invert"), images)
    assert torch.equal(corrupt(images, "none"), images)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(SHIFTS), size=st.integers(8, 41), channels=st.sampled_from([1, 3]), severity=st.integers(1, 5)
)
def test_any_size_and_grey_images_pass(name: str, size: int, channels: int, severity: int) -> None:
    images = photographs(size)[:2, :channels]
    assert corrupt(images, name, severity).shape == images.shape


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("name", SHIFTS)
def test_flat_images_pass(name: str, value: int) -> None:
    assert corrupt(torch.full((2, 3, 16, 16), value, dtype=torch.uint8), name, 5).shape == (2, 3, 16, 16)


def test_unknown_names_and_severities_are_refused() -> None:
    images = photographs(16)
    with pytest.raises(UserError, match="did you mean gaussian_noise"):
        corrupt(images, "gausian_noise")
    with pytest.raises(UserError, match="severity must be"):
        corrupt(images, "fog", 6)
