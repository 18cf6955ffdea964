"""Weights from files: whose state dict it is does not matter, that it fits does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from tl_lightning.backbones import create_backbone
from tl_lightning.errors import UserError


def saved(content: object, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def assert_same_body(model: nn.Module, state: dict[str, torch.Tensor], head: str) -> None:
    own = model.state_dict()
    assert {k for k in own if not k.startswith(head)} == {k for k in state if not k.startswith(head)}
    assert all(torch.equal(value, state[key]) for key, value in own.items() if not key.startswith(head))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("squeezenet1_1", "classifier.1."),
        ("resnet18", "fc."),
        ("mobilenet_v3_small", "classifier.3."),
        ("swin_t", "head."),
    ],
)
def test_a_torchvision_state_dict_loads_without_its_head(name: str, head: str, tmp_path: Path) -> None:
    state = models.get_model(name).state_dict()
    path = saved(state, tmp_path / "torchvision.pth")
    assert_same_body(create_backbone(name, path, 3), state, head)
    with_own_head = create_backbone(name, path, 1000).state_dict()
    assert not torch.equal(with_own_head[f"{head}weight"], state[f"{head}weight"])


def test_an_own_state_dict_loads_whatever_its_dropout(tmp_path: Path) -> None:
    source = create_backbone("resnet18", num_classes=5, dropout=0.5)
    path = saved(source.state_dict(), tmp_path / "own.pt")
    for dropout in (None, 0.2):
        assert_same_body(create_backbone("resnet18", path, 3, dropout=dropout), source.state_dict(), "fc.")


def test_an_own_grey_state_dict_loads(tmp_path: Path) -> None:
    source = create_backbone("squeezenet1_1", num_classes=5, in_channels=1)
    path = saved(source.state_dict(), tmp_path / "grey.pt")
    loaded = create_backbone("squeezenet1_1", path, 3, in_channels=1)
    assert_same_body(loaded, source.state_dict(), "classifier.1.")
    with pytest.raises(UserError, match=r"of another shape features\.0\.weight 64x1x3x3 for 64x3x3x3"):
        create_backbone("squeezenet1_1", path, 3)


class Classifier(lightning.LightningModule):
    """Somebody's module: a backbone, a metric's buffer, a loss weight."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = models.squeezenet1_1(num_classes=4)
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_a_lightning_checkpoint_loads(tmp_path: Path) -> None:
    module = Classifier()
    data = DataLoader(TensorDataset(torch.rand(2, 3, 32, 32), torch.tensor([0, 1])), batch_size=2)
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = create_backbone("squeezenet1_1", str(tmp_path / "last.ckpt"), 3)
    assert_same_body(loaded, module.backbone.state_dict(), "classifier.1.")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: {f"module.{k}": v for k, v in model.state_dict().items()},
        lambda model: torch.compile(model).state_dict(),
        lambda model: {"model": model.state_dict(), "epoch": 3},
        lambda model: {"state_dict": {f"module.backbone.{k}": v for k, v in model.state_dict().items()}},
    ],
    ids=["DDP", "compiled", "nested", "DDP of a Lightning module"],
)
def test_wrapped_state_dicts_load(wrap: Callable[[nn.Module], dict], tmp_path: Path) -> None:
    model = models.mnasnet0_5()
    loaded = create_backbone("mnasnet0_5", saved(wrap(model), tmp_path / "wrapped.pt"), 3)
    assert_same_body(loaded, model.state_dict(), "classifier.1.")


def test_densenet_files_of_early_releases_load(tmp_path: Path) -> None:
    state = models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12]\.)", r"\1.\2", key): v for key, v in state.items()}
    old = {key: v for key, v in old.items() if not key.endswith("num_batches_tracked")}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    loaded = create_backbone("densenet121", saved(old, tmp_path / "old.pth"), 3)
    expected = {k: v for k, v in state.items() if not k.startswith("classifier")}
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in expected.items())


def test_mnasnet_files_of_the_first_release_load(tmp_path: Path) -> None:
    first = models.mnasnet0_5()
    marked = first.state_dict()
    marked._metadata[""]["version"] = 1
    with pytest.warns(UserWarning, match="new version of MNASNet"), pytest.raises(RuntimeError):
        first.load_state_dict(marked)  # makes `first` what the first release built, then finds that the shapes differ
    assert first.layers[0].weight.shape[0] == 32
    path = saved(first.state_dict(), tmp_path / "first.pth")
    with pytest.warns(UserWarning, match="new version of MNASNet"):
        loaded = create_backbone("mnasnet0_5", path, 3)
    assert_same_body(loaded, first.state_dict(), "classifier.1.")


def published(name: str, state: dict[str, torch.Tensor], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a state dict where a download of the published weights would have put them."""
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / models.get_model_weights(name)["IMAGENET1K_V1"].url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(home))


def test_downloaded_weights_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = models.squeezenet1_1().state_dict()
    published("squeezenet1_1", state, tmp_path, monkeypatch)
    assert_same_body(create_backbone("squeezenet1_1", "IMAGENET1K_V1", 3), state, "classifier.1.")
    assert_same_body(create_backbone("squeezenet1_1", "SqueezeNet1_1_Weights.DEFAULT", 3), state, "classifier.1.")


@pytest.mark.parametrize("aux_logits", [False, True])
def test_auxiliary_heads_of_downloaded_weights_load_or_are_left_out(
    aux_logits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = models.googlenet(init_weights=False).state_dict()
    published("googlenet", state, tmp_path, monkeypatch)
    own = create_backbone("googlenet", "IMAGENET1K_V1", 3, aux_logits=aux_logits).state_dict()
    fresh = {key for key, value in own.items() if not torch.equal(value, state[key])} if aux_logits else set()
    assert torch.equal(own["inception5b.branch4.1.conv.weight"], state["inception5b.branch4.1.conv.weight"])
    assert ("aux1.conv.conv.weight" in own) == aux_logits
    assert {key.rpartition(".")[0] for key in fresh} == ({"fc", "aux1.fc2", "aux2.fc2"} if aux_logits else set())


def test_layers_that_published_weights_do_not_cover_stay_initialised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = models.squeezenet1_1().state_dict()
    state["features.3.squeeze.weight"][:] = float("nan")
    published("squeezenet1_1", state, tmp_path, monkeypatch)
    own = create_backbone("squeezenet1_1", "IMAGENET1K_V1", 3).state_dict()
    assert all(value.isfinite().all() for value in own.values())
    assert torch.equal(own["features.4.squeeze.weight"], state["features.4.squeeze.weight"])
    with pytest.raises(UserError, match=r"not finite features\.3\.squeeze\.weight"):
        create_backbone("squeezenet1_1", saved(state, tmp_path / "broken.pt"), 3)


def test_a_checkpoint_of_another_model_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = saved(models.squeezenet1_1().state_dict(), tmp_path / "squeezenet.pt")
    with pytest.raises(UserError) as caught:
        create_backbone("resnet18", path, 3)
    message = str(caught.value)
    assert message.startswith(f"{path} does not fit the backbone: missing conv1.weight, ")
    assert re.search(r"and \d+ more; unexpected features\.0\.weight, ", message)
    assert message.count("layer1") + message.count("bn1") <= 5
    assert "\n" not in message


def test_other_shapes_are_listed(tmp_path: Path) -> None:
    path = saved(models.resnet34().state_dict(), tmp_path / "resnet34.pt")
    with pytest.raises(UserError, match=r"unexpected layer1\.2\.conv1\.weight, .* and \d+ more$"):
        create_backbone("resnet18", path)
    path = saved(models.shufflenet_v2_x1_0().state_dict(), tmp_path / "shufflenet.pt")
    with pytest.raises(
        UserError, match=r"of another shape stage2\.0\.branch1\.2\.weight 58x24x1x1 for 24x24x1x1, .* more$"
    ):
        create_backbone("shufflenet_v2_x0_5", path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(zipped: bool, tmp_path: Path) -> None:
    state = {**models.squeezenet1_1().state_dict(), "trap": Trap(tmp_path / "sprung")}
    torch.save(state, tmp_path / "trap.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not loaded as it could run code"):
        create_backbone("squeezenet1_1", str(tmp_path / "trap.pt"), 3)
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "sprung").exists(), "the trap works"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_a_file_of_anything_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "anything.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"anything\.pt") as caught:
        create_backbone("squeezenet1_1", str(tmp_path / "anything.pt"), 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, torch.zeros(3), {"state_dict": {"lr": 0.1}}])
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no state dict"):
        create_backbone("squeezenet1_1", saved(content, tmp_path / "other.pt"), 3)
