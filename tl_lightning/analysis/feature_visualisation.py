"""What a channel looks for: images that maximise it, found by gradient ascent from noise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tl_lightning.analysis.checks import Array, as_classes, as_numpy
from tl_lightning.analysis.redirected_relu import RedirectedReLUs
from tl_lightning.analysis.target_layer import TargetLayer, find_target_layer, hooked
from tl_lightning.analysis.untouched import untouched
from tl_lightning.errors import UserError, unknown_name

# Correlation of the colour channels in natural images, as in Lucid (Olah et al. 2017): without it colours come out
# as rainbows that no photograph holds.
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_REDIRECTED_STEPS = 16  # as in Lucid
Prior = Literal["fourier", "pixels"]


@dataclass(frozen=True)
class ChannelImages:
    """Images that maximise channels.

    Attributes:
        images: float32 [K, 3, S, S] in [0, 1].
        channels: int64 [K], the maximised channel of each.
        activations: float32 [K], the channel's mean over its map for the final image.
        start: float32 [K], the same for the noise that the ascent began with.
        layer: Path of the layer within the backbone.
    """

    images: npt.NDArray[np.float32]
    channels: npt.NDArray[np.int64]
    activations: npt.NDArray[np.float32]
    start: npt.NDArray[np.float32]
    layer: str


def visualise_channels(
    model: nn.Module,
    layer: str,
    channels: Sequence[int],
    *,
    image_size: int = 128,
    steps: int = 128,
    step_size: float = 0.05,
    jitter: int = 8,
    prior: Prior = "fourier",
    total_variation: float = 0.0,
    attribute: str = "",
    seed: int = 0,
) -> ChannelImages:
    """Return an image for each channel that maximises the mean of its map.

    Gradient ascent on the image (Simonyan et al. 2013) with Adam, shifted at random before each step so that no
    detail may depend on its exact place, and with the frequencies of the image as parameters, scaled as in natural
    images (Olah et al. 2017, "Feature visualization"). In the first 16 steps gradients pass ReLUs that noise leaves
    silent, see ``RedirectedReLUs``. The model is left as ``untouched`` describes; global random numbers are neither
    used nor changed.

    Args:
        model: Maps images in [0, 1] to anything: a LightningModule that normalises by itself, or a backbone behind a
            layer that does. It runs no further than the layer.
        layer: Path of a layer with maps within the backbone.
        channels: The channels to maximise, one image each.
        image_size: Side of the images in pixels.
        steps: Steps of gradient ascent.
        step_size: Learning rate of Adam.
        jitter: Largest shift in pixels; the image is continued periodically.
        prior: ``fourier``, or ``pixels`` for plain pixels, which needs ``total_variation`` to show anything smooth.
        total_variation: Weight of the mean absolute difference of neighbouring pixels, in units of the activation.
        attribute: Path of the backbone within the model; the model itself by default.
        seed: Fixes the noise to begin with and the shifts.

    Raises:
        UserError: There is no such layer or channel, the layer has no maps, or a number is out of range.
    """
    _check(prior, image_size, steps, jitter, len(channels))
    generator = torch.Generator().manual_seed(seed)
    with untouched(model):
        target = find_target_layer(model, torch.empty(0), layer=layer, attribute=attribute)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        parameters, decode = _image(prior, len(channels), image_size, generator, device)
        start = _activations(model, target, decode(parameters).detach())
        chosen = _chosen(channels, start.shape[1], target.name).to(device)
        optimizer = torch.optim.Adam([parameters], lr=step_size)
        for step in range(steps):
            images = decode(parameters)
            shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
            with RedirectedReLUs() if step < _REDIRECTED_STEPS else contextlib.nullcontext():
                reached = _activations(model, target, images.roll(shift, (2, 3))).gather(1, chosen[:, None]).sum()
            loss = total_variation * _variation(images) - reached
            (parameters.grad,) = torch.autograd.grad(loss, parameters)
            optimizer.step()
        images = decode(parameters).detach()
        end = _activations(model, target, images)
    excited, begun = (values.gather(1, chosen[:, None])[:, 0].cpu().numpy() for values in (end, start))
    return ChannelImages(images.float().cpu().numpy(), chosen.cpu().numpy(), excited, begun, target.name)


def channel_activations(
    model: nn.Module, images: Array, layer: str, *, attribute: str = "", batch_size: int = 64
) -> npt.NDArray[np.float32]:
    """Return the mean of every channel's map of a layer for each image, float32 [N, C].

    Args:
        model: As for ``visualise_channels``, and left as it was.
        images: Float [N, 3, H, W] as the model takes them.
        layer: Path of a layer with maps within the backbone.
        attribute: Path of the backbone within the model; the model itself by default.
        batch_size: Images at a time.
    """
    pixels = images.detach() if isinstance(images, Tensor) else torch.as_tensor(as_numpy(images))
    state = next(model.parameters(), pixels)
    with untouched(model), torch.no_grad():
        target = find_target_layer(model, pixels, layer=layer, attribute=attribute)
        parts = [_activations(model, target, batch.to(state)) for batch in pixels.split(batch_size)]
    return torch.cat(parts).cpu().numpy()


class _ReachedError(Exception):
    """The layer has answered; what lies behind it need not run."""


def _activations(model: nn.Module, target: TargetLayer, images: Tensor) -> Tensor:
    """Return the means of the layer's maps, [N, C]."""
    found: list[Tensor] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        found.append(target.to_maps(output))
        raise _ReachedError

    with hooked([target.module.register_forward_hook(stop)]):
        try:
            model(images)
        except _ReachedError:
            return found[0].mean((2, 3))
    raise UserError(f"layer {target.name!r} takes no part in the model's forward pass: name another")


def _image(
    prior: Prior, count: int, size: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the parameters of the images, near grey, and the function that turns them into images in [0, 1]."""
    shape = (count, 3, size, size // 2 + 1, 2) if prior == "fourier" else (count, 3, size, size)
    parameters = (0.01 * torch.randn(shape, generator=generator)).to(device).requires_grad_(True)
    if prior == "pixels":
        return parameters, torch.sigmoid
    scale = _natural_scale(size).to(device)
    colours = torch.tensor(_COLOURS)
    colours = (colours / colours.norm(dim=0).max()).to(device)

    def decode(spectrum: Tensor) -> Tensor:
        pixels = torch.fft.irfft2(torch.view_as_complex(spectrum) * scale, s=(size, size)) / 4
        return torch.sigmoid(torch.einsum("kchw,dc->kdhw", pixels, colours))

    return parameters, decode


def _natural_scale(size: int) -> Tensor:
    """Return the weight of each frequency, [size, size // 2 + 1]: amplitudes of natural images fall as 1 / f."""
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    return size / (rows**2 + columns**2).sqrt().clamp(min=1 / size)


def _variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, summed over the images."""
    across, down = images.diff(dim=3).abs(), images.diff(dim=2).abs()
    return (across.mean((1, 2, 3)) + down.mean((1, 2, 3))).sum()


def _chosen(channels: Sequence[int], count: int, layer: str) -> Tensor:
    numbers = as_classes(list(channels), len(channels), "channels")
    if numbers.min() < 0 or numbers.max() >= count:
        raise UserError(f"channels of layer {layer!r} must lie in 0 .. {count - 1}, not {list(channels)}")
    return torch.from_numpy(numbers)


def _check(prior: str, image_size: int, steps: int, jitter: int, channels: int) -> None:
    if prior not in ("fourier", "pixels"):
        raise unknown_name("prior", prior, ["fourier", "pixels"])
    if min(image_size, steps, channels) < 1 or jitter < 0:
        raise UserError(
            f"image_size, steps and the number of channels must be at least 1 and jitter not negative, not "
            f"{image_size}, {steps}, {channels} and {jitter}"
        )
