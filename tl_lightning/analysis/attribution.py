"""Which pixels speak for a class: Grad-CAM and guided backpropagation, with the model left as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tl_lightning.analysis.checks import Array, as_classes, as_numpy
from tl_lightning.analysis.target_layer import TargetLayer, find_target_layer, hooked
from tl_lightning.analysis.untouched import untouched
from tl_lightning.errors import UserError


@dataclass(frozen=True)
class GradCAMMaps:
    """Grad-CAM maps of images, and what the model says about them.

    Attributes:
        maps: float32 [N, H, W] from 0 up, at the size of the images and not scaled: only ratios within a map mean
            something. All zero where no channel speaks for the class.
        classes: int64 [N], the explained class of each image.
        probabilities: float32 [N, C], the softmax of the class scores.
        layer: Path of the target layer within the backbone.
    """

    maps: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    layer: str


def grad_cam(
    model: nn.Module,
    images: Array,
    classes: Array | None = None,
    *,
    layer: str | None = None,
    attribute: str = "",
    batch_size: int = 64,
) -> GradCAMMaps:
    """Return Grad-CAM maps (Selvaraju et al. 2017) computed by the grad-cam package.

    The backward pass goes from the class scores to the target layer and no further, so frozen models need nothing
    special and parameters get no gradients. The model is left as ``untouched`` describes.

    Args:
        model: Maps images to class scores [N, C]: a plain backbone, or a LightningModule that holds one.
        images: Images [N, 3, H, W] as the model's forward takes them.
        classes: The class to explain for each image [N]; the predicted ones by default.
        layer: Path of the target layer within the backbone; see ``find_target_layer`` for the default.
        attribute: Path of the backbone within the model; the model itself by default.
        batch_size: Images at a time.

    Raises:
        UserError: The layer does not exist, has no maps or no influence, or the model gives no class scores.
    """
    with untouched(model):
        inputs = as_inputs(model, images)
        wanted = _as_targets(classes, len(inputs))
        target = find_target_layer(model, inputs, layer=layer, attribute=attribute)
        parts = [
            _grad_cam_batch(model, target, batch, chosen) for batch, chosen in _batched(inputs, wanted, batch_size)
        ]
    maps, explained, probabilities = (torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))
    return GradCAMMaps(maps, explained, probabilities, target.name)


def _grad_cam_batch(
    model: nn.Module, target: TargetLayer, images: Tensor, classes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    start = target.module.register_forward_hook(_start_gradient)
    with hooked([start]):
        cam = GradCAM(model, [target.module], reshape_transform=target.to_maps)
        try:
            logits = _class_scores(cam.activations_and_grads(images))
            classes = logits.argmax(1) if classes is None else _known(classes, logits)
            _backward(logits, classes, target.name)
            kept = cam.activations_and_grads
            if not kept.gradients:
                raise _no_influence(target.name)
            raw = cam.get_cam_image(
                images, target.module, None, kept.activations[-1].numpy(), kept.gradients[-1].numpy()
            )
        finally:
            cam.activations_and_grads.release()
    maps = torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32)).clamp(min=0)
    maps = F.interpolate(maps[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return maps, classes.detach(), logits.detach().float().softmax(1)


def _start_gradient(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Make the layer's output the point where gradients start.

    The clone keeps an in-place operation that may follow away from the leaf, where it would be an error.
    """
    return output.detach().requires_grad_(True).clone() if isinstance(output, Tensor) else output


def _backward(logits: Tensor, classes: Tensor, layer: str) -> None:
    if not logits.requires_grad:
        raise _no_influence(layer)
    logits.gather(1, classes[:, None]).sum().backward()


def _no_influence(layer: str) -> UserError:
    return UserError(f"the class scores do not depend on target layer {layer!r} (in evaluation mode): name another")


def guided_backprop(
    model: nn.Module, images: Array, classes: Array | None = None, *, batch_size: int = 64
) -> npt.NDArray[np.float32]:
    """Return guided backpropagation (Springenberg et al. 2015): the gradient of the class score on the pixels.

    At every ReLU and ReLU6, module or function, only positive gradients pass on. Other activations keep their plain
    gradient. (``GuidedBackpropReLUModel`` of the grad-cam package knows ``nn.ReLU`` modules only, gives the plain
    gradient for ReLU6 and functional ReLUs, and exchanges the model's modules; where it applies the results agree.)

    Args:
        model: Maps images to class scores [N, C].
        images: Images [N, 3, H, W] as the model's forward takes them.
        classes: The class to explain for each image [N]; the predicted ones by default.
        batch_size: Images at a time.

    Returns:
        Signed gradients, float32 [N, 3, H, W]; take ``abs(...).sum(1)`` for maps.

    Raises:
        UserError: The model has no ReLU, or gives no class scores.
    """
    with untouched(model):
        inputs = as_inputs(model, images)
        wanted = _as_targets(classes, len(inputs))
        parts = [_guided_batch(model, batch, chosen) for batch, chosen in _batched(inputs, wanted, batch_size)]
    return torch.cat(parts).float().cpu().numpy()


def _guided_batch(model: nn.Module, images: Tensor, classes: Tensor | None) -> Tensor:
    images = images.detach().clone().requires_grad_(True)
    with _PositiveGradients() as mode:
        logits = _class_scores(model(images))
    if not mode.activations:
        raise UserError(f"guided backpropagation changes ReLUs, and {type(model).__name__} has none")
    classes = logits.argmax(1) if classes is None else _known(classes, logits)
    return torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), images)[0]


class _PositiveGradients(TorchFunctionMode):
    """Lets only positive gradients pass back through ReLUs."""

    RELUS: frozenset[Callable[..., Any]] = frozenset(
        {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardtanh_}
    )

    def __init__(self) -> None:
        super().__init__()
        self.activations = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in self.RELUS and output.requires_grad:
            output.register_hook(_positive)
            self.activations += 1
        return output


def _positive(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0)


def as_inputs(model: nn.Module, images: Array) -> Tensor:
    """Return the images as a plain tensor on the device and in the number type of the model."""
    tensor = images.detach() if isinstance(images, Tensor) else torch.as_tensor(as_numpy(images))
    if tensor.ndim != 4 or len(tensor) == 0 or not tensor.is_floating_point():
        raise UserError(f"images must be floats [N, channels, H, W], not {tensor.dtype} {list(tensor.shape)}")
    state = next(model.parameters(), None)
    return tensor.to(state if state is not None else tensor, copy=True)


def _as_targets(classes: Array | None, rows: int) -> Tensor | None:
    return None if classes is None else torch.from_numpy(as_classes(classes, rows, "classes"))


def _batched(images: Tensor, classes: Tensor | None, size: int) -> list[tuple[Tensor, Tensor | None]]:
    chosen = classes.to(images.device).split(size) if classes is not None else None
    batches = images.split(size)
    return [(batch, chosen[i] if chosen is not None else None) for i, batch in enumerate(batches)]


def _class_scores(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"attribution needs a model that gives class scores [N, C]; this one gives {shape}")
    return output


def _known(classes: Tensor, logits: Tensor) -> Tensor:
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]:
        raise UserError(f"classes must lie in 0 .. {logits.shape[1] - 1}, the model's outputs")
    return classes
