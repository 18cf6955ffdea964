from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from tl_lightning.backbones import Stages, create_backbone
from tl_lightning.callbacks.frozen import hold_in_eval
from tl_lightning.errors import UserError
from tl_lightning.folding import fold_batchnorm


def with_statistics(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and factors that matter."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    return model


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def assert_same_output(model: nn.Module, folded: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
        result = folded(x)
    scale = expected.abs().max()
    assert (expected - result).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5"])
def test_all_normalisation_of_a_backbone_goes(name):
    model = with_statistics(create_backbone(name, "none", 5))
    folded = fold_batchnorm(model)
    assert norms(model) > 15
    assert norms(folded) == 0
    assert_same_output(model, folded, torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "convnext_tiny"])
def test_what_cannot_be_folded_stays_and_the_output_is_the_same(name):
    model = with_statistics(create_backbone(name, "none", 5))
    folded = fold_batchnorm(model)
    assert norms(folded) < norms(model) or norms(model) == 0
    assert_same_output(model, folded, torch.rand(2, 3, 64, 64))


def test_the_prefix_of_a_split_is_folded():
    model = with_statistics(create_backbone("resnet18", "none", 5)).eval()
    stages = Stages(model)
    prefix, suffix = stages.split(stages.boundary_before("layer3"))
    folded = fold_batchnorm(prefix)
    x = torch.rand(2, 3, 64, 64)
    assert norms(folded) == 0
    with torch.no_grad():
        assert torch.allclose(suffix(folded(x)), model(x), atol=1e-4)


def test_the_model_is_left_as_it_is_and_shares_nothing():
    model = with_statistics(create_backbone("resnet18", "none", 5)).train()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    folded = fold_batchnorm(model)
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(m.training for m in folded.modules())
    own = {p.data_ptr() for p in [*model.parameters(), *model.buffers()]}
    assert not own & {p.data_ptr() for p in [*folded.parameters(), *folded.buffers()]}
    x = torch.rand(2, 3, 64, 64)
    first = folded(x)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(folded(x), first)
    model.load_state_dict(before)
    assert_same_output(model, folded, x)


def test_layers_that_are_held_in_eval_mode_are_folded_too():
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    for module in model.modules():
        hold_in_eval(module)
    assert_same_output(model, fold_batchnorm(model), torch.rand(2, 3, 6, 6))


class Branch(nn.Module):
    """A convolution with two uses, a convolution called twice, and a normalisation by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_output = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.last = nn.Conv2d(4, 4, 1)
        self.by_batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        y = self.shared_output(x)
        z = self.norm(y) + y
        z = self.norms[0](self.twice(z))
        z = self.norms[1](self.twice(z))
        return self.by_batch(self.last(z))


def test_nothing_is_folded_where_it_would_not_be_exact():
    model = with_statistics(Branch())
    folded = fold_batchnorm(model)
    assert norms(folded) == 4
    assert_same_output(model, folded, torch.rand(3, 3, 8, 8))


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), (2, 3, 9)),
        (nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), (2, 2, 5, 5, 5)),
        (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), (2, 4, 9, 9)),
        (nn.Conv2d(4, 8, 3, dilation=2, stride=2), nn.BatchNorm2d(8, affine=False), (2, 4, 9, 9)),
        (nn.Linear(5, 7), nn.BatchNorm1d(7), (4, 5)),
        (nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), (4, 5)),
        (nn.Conv2d(3, 4, 3).double(), nn.BatchNorm2d(4).double(), (2, 3, 6, 6)),
    ],
)
def test_every_kind_of_layer(layer, norm, shape):
    model = with_statistics(nn.Sequential(layer, norm, nn.ReLU()))
    folded = fold_batchnorm(model)
    assert norms(folded) == 0
    x = torch.randn(*shape, dtype=layer.weight.dtype)
    assert_same_output(model, folded, x)
    assert folded(x).dtype == x.dtype


def test_a_transposed_convolution_keeps_its_normalisation():
    model = with_statistics(nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)))
    folded = fold_batchnorm(model)
    assert norms(folded) == 1
    assert_same_output(model, folded, torch.rand(2, 3, 5, 5))


def test_a_folded_linear_layer_refuses_sequences():
    folded = fold_batchnorm(with_statistics(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))))
    with pytest.raises(ValueError, match="rows"):
        folded(torch.rand(2, 4, 5))


def test_a_graph_module_may_be_given():
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert_same_output(model, fold_batchnorm(fx.symbolic_trace(model)), torch.rand(2, 3, 6, 6))


def test_a_module_that_cannot_be_traced_is_a_user_error():
    class Untraceable(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="traced"):
        fold_batchnorm(Untraceable())


def test_a_norm_that_is_called_by_keyword_is_folded():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(input=self.conv(x))

    model = with_statistics(Keyword())
    folded = fold_batchnorm(model)
    assert norms(folded) == 0
    assert_same_output(model, folded, torch.rand(2, 3, 8, 8))
