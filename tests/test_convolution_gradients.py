"""Gradients of small convolutions from matrix products, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tl_lightning.convolution_gradients import ConvolutionGradients
from tl_lightning.tasks import TransferModule

SPATIAL, POINTWISE = "_SpatialBackward", "_PointwiseBackward"


def way(output):
    """Return whose backward pass it is, None for torch's."""
    name = type(output.grad_fn).__name__
    return name if name in (SPATIAL, POINTWISE) else None


def gradients(convolution, image, context, image_needs_it):
    """Return the output and the gradients of a sum weighted at random."""
    image = image.detach().requires_grad_(image_needs_it)
    if context is None:
        output = convolution(image)
    else:
        with context:
            output = convolution(image)
    weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(1))
    wanted = [tensor for tensor in (image, *convolution.parameters()) if tensor.requires_grad]
    return output, torch.autograd.grad((output * weights).sum(), wanted)


@settings(deadline=None, max_examples=120)
@given(
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels=st.integers(2, 5),
    outputs=st.none() | st.integers(1, 9),
    batch=st.integers(0, 4),
    bias=st.booleans(),
    image_needs_it=st.booleans(),
    channels_last=st.booleans(),
)
def test_output_is_the_same_and_gradients_agree(
    kernel, size, stride, padding, channels, outputs, batch, bias, image_needs_it, channels_last
):
    """Depthwise where ``outputs`` is None."""
    if any(s + 2 * p < k for s, p, k in zip(size, padding, kernel, strict=True)):
        return  # no output
    torch.manual_seed(0)
    groups = channels if outputs is None else 1
    convolution = nn.Conv2d(channels, outputs or channels, kernel, stride, padding, groups=groups, bias=bias)
    image = torch.randn(batch, channels, *size)
    if channels_last:
        convolution = convolution.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    agrees(convolution, image, image_needs_it)


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    batch=st.integers(0, 4),
    bias=st.booleans(),
    image_needs_it=st.booleans(),
    channels_last=st.booleans(),
)
def test_1x1_output_is_the_same_and_gradients_agree(size, inputs, outputs, batch, bias, image_needs_it, channels_last):
    torch.manual_seed(0)
    convolution = nn.Conv2d(inputs, outputs, 1, bias=bias)
    image = torch.randn(batch, inputs, *size)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    agrees(convolution, image, image_needs_it)


def agrees(convolution, image, image_needs_it):
    """Check a convolution in the context against the same without."""
    output, expected = gradients(convolution, image, None, image_needs_it)
    own_output, own = gradients(convolution, image, ConvolutionGradients(), image_needs_it)
    assert torch.equal(own_output, output)
    for ours, theirs in zip(own, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "side", "groups", "own"),
    [
        pytest.param(5, 6, 8, SPATIAL, id="five pixels on six"),
        pytest.param(7, 3, 8, SPATIAL, id="seven on three"),
        pytest.param(3, 2, 8, SPATIAL, id="three on two"),
        pytest.param(3, 6, 8, None, id="three on six, which oneDNN does quickly"),
        pytest.param(5, 12, 8, None, id="five on twelve, too many pairs"),
        pytest.param(5, 6, 4, None, id="two channels a group"),
        pytest.param(5, 6, 1, SPATIAL, id="dense"),
        pytest.param(3, 24, 1, None, id="dense, too many pixels"),
        pytest.param(1, 32, 1, POINTWISE, id="one"),
        pytest.param(1, 48, 1, None, id="one, too many pixels"),
        pytest.param(1, 6, 4, None, id="one, in groups"),
    ],
)
def test_it_concerns_what_gains(kernel, side, groups, own):
    convolution = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=groups).to(memory_format=torch.channels_last)
    with ConvolutionGradients():
        output = convolution(torch.randn(2, 8, side, side).contiguous(memory_format=torch.channels_last))
    assert way(output) == own


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(8, 8, 5, padding="same", groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8).double(),
        nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8),
        nn.Conv2d(8, 16, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8).requires_grad_(False),
        nn.Conv2d(8, 16, 1).double(),
        nn.Conv2d(8, 16, 3, padding=1).double(),
        nn.Conv2d(8, 16, 3, padding=2, dilation=2),
    ],
)
def test_everything_else_is_left_to_torch(convolution):
    with ConvolutionGradients():
        image = torch.randn(2, 8, 6, 6, dtype=convolution.weight.dtype).contiguous(memory_format=torch.channels_last)
        output = convolution(image.requires_grad_())
    assert way(output) is None


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_dense_convolution_over_channels_first_maps_is_left_to_torch(kernel):
    with ConvolutionGradients():
        output = nn.Conv2d(8, 16, kernel)(torch.randn(2, 8, 6, 6))
    assert way(output) is None


def test_half_precision_is_left_to_torch():
    convolution = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    with torch.autocast("cpu", torch.bfloat16), ConvolutionGradients():
        output = convolution(torch.randn(2, 8, 6, 6))
    assert way(output) is None


def test_operations_counted_are_those_of_the_convolution():
    convolution = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    with FlopCounterMode(display=False) as counter:
        with ConvolutionGradients():
            output = convolution(torch.randn(2, 8, 6, 6))
        output.sum().backward()
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    forward = 2 * 2 * 8 * 36 * 25
    assert counts["tl_lightning.depthwise_weight_gradient"] == counts["aten.convolution"] == forward


@pytest.mark.parametrize("kernel", [1, 3])
def test_operations_counted_of_a_dense_convolution_are_its_own(kernel):
    image = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    convolution = nn.Conv2d(8, 16, kernel, padding=kernel // 2).to(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter, ConvolutionGradients():
        convolution(image).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * 36 * 8 * 16 * kernel**2


@pytest.mark.parametrize(
    "convolution", [nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)]
)
def test_second_derivatives_are_those_of_torch(convolution):
    convolution = convolution.to(memory_format=torch.channels_last)
    image = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)

    def penalty(context):
        image_ = image.clone().requires_grad_()
        with context:
            output = convolution(image_).square().sum()
        (slope,) = torch.autograd.grad(output, image_, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), convolution.weight)[0]

    torch.testing.assert_close(penalty(ConvolutionGradients()), penalty(torch.enable_grad()))


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18"])
def test_per_sample_gradients_of_a_task(backbone):
    module = TransferModule(backbone, 3, channels_last=False).eval()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 2])

    def loss(parameters, image, label):
        logits = torch.func.functional_call(module, parameters, image[None])
        return nn.functional.cross_entropy(logits, label[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, images, labels)
    for position in range(2):
        module.zero_grad()
        nn.functional.cross_entropy(module(images[position][None]), labels[position][None]).backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(each[name][position], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18"])
def test_a_task_trains_with_it_and_agrees_with_its_network_alone(backbone):
    torch.manual_seed(0)
    module = TransferModule(backbone, 3).train()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout) or "StochasticDepth" in type(layer).__name__:
            layer.train(False)
    image = torch.rand(4, 3, 64, 64)
    gradients = []
    for network in (module, lambda x: module.backbone(module.normalise(x))):
        module.zero_grad()
        network(image).square().sum().backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    assert any(not torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # it was not torch's own way


def test_a_network_without_gradients_is_run_as_it_is():
    module = TransferModule("efficientnet_lite0", 3).eval()
    with torch.inference_mode():
        assert torch.equal(
            module(torch.ones(1, 3, 64, 64)), module.backbone(module.normalise(torch.ones(1, 3, 64, 64)))
        )
