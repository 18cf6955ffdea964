"""Compiled training: used in training alone, the module left as it was, no compiler in one line."""

from __future__ import annotations

import pytest
import torch
from fits import Plain, fit, loader, sgd, tensors

from tl_lightning.callbacks import ProgressiveUnfreezing
from tl_lightning.callbacks.compiled_training import CompiledTraining, check_compiler
from tl_lightning.errors import UserError


class Watching(Plain):
    """Notes whether its backbone is compiled in training and in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: dict[str, set[bool]] = {"train": set(), "val": set()}

    def training_step(self, batch, batch_idx):
        part = "train" if self.trainer.training else "val"
        self.compiled[part].add(self.backbone._compiled_call_impl is not None)
        return super().training_step(batch, batch_idx)


def trained(*callbacks):
    torch.manual_seed(0)
    module = Watching()
    torch.manual_seed(1)
    fit(module, callbacks, epochs=2, val=loader(6))
    return module


def test_training_is_compiled_and_validation_is_not():
    module = trained(CompiledTraining(backend="eager"))
    assert module.compiled == {"train": {True}, "val": {False}}
    assert module.backbone._compiled_call_impl is None


def test_it_trains_to_the_same_weights_and_keeps_their_names():
    plain, compiled = trained(), trained(CompiledTraining(backend="eager"))
    expected, found = tensors(plain), tensors(compiled)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def test_frozen_stages_stay_frozen():
    torch.manual_seed(0)
    module = Watching()
    before = tensors(module)
    fit(module, [ProgressiveUnfreezing("head"), CompiledTraining(backend="eager")], epochs=2)
    changed = {name for name, tensor in tensors(module).items() if not torch.equal(tensor, before[name])}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}


def test_the_module_is_as_it_was_after_an_error():
    class Failing(Watching):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("stop")

    module = Failing()
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, [CompiledTraining(backend="eager")], val=loader(6))
    assert module.backbone._compiled_call_impl is None


def test_a_machine_without_compiler_gets_one_clear_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler++")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, but there is no no-such-compiler"):
        fit(Watching(), [CompiledTraining()])
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="install one"):
        check_compiler("cpu")


@pytest.mark.slow
def test_the_default_backend_trains_to_the_same_weights():
    try:
        check_compiler("cpu")
    except UserError as error:
        pytest.skip(str(error))
    found = []
    for callbacks in ([], [CompiledTraining()]):
        torch.manual_seed(0)
        module = Watching()
        for part in module.modules():  # compiled code draws other random numbers
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        module.configure = sgd  # Adam blows rounding up where a bias before BatchNorm has no gradient
        fit(module, callbacks, epochs=2)
        found.append(tensors(module))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4)
