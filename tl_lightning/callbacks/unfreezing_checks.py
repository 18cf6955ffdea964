"""What a schedule of freezing cannot work with, refused before the first step."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy
from torch.optim import Optimizer

from tl_lightning.callbacks.frozen import FrozenStages
from tl_lightning.errors import UserError


def check_policy(frozen: FrozenStages, depth: int) -> None:
    """Refuse a BatchNorm policy where no frozen stage has BatchNorm: it would read as done and change nothing.

    Raises:
        UserError: See above.
    """
    if frozen.bn != "eval" and depth and not any(True for _ in frozen.batch_norms(depth)):
        raise UserError(f"bn={frozen.bn!r} has nothing to act on: the frozen stages hold no BatchNorm; use bn='eval'")


def check_optimizer(frozen: FrozenStages, optimizer: Optimizer, first: int, last: int, attribute: str) -> None:
    """Refuse an optimizer that does not hold what the schedule will train, or a schedule that trains nothing.

    Args:
        frozen: The staged module.
        optimizer: The optimizer, after its groups were split.
        first: Number of frozen stages at epoch 0.
        last: Number of stages that stay frozen to the end.
        attribute: Name of the staged module.

    Raises:
        UserError: See above.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(frozen.module.named_parameters())
    for name in frozen.trainable_at(last):
        if id(parameters[name]) not in held:
            raise UserError(
                f"{name!r} is to be trained but configure_optimizers does not give it to the optimizer: give it all "
                f"parameters of {attribute or 'the module'!r}, frozen ones too"
            )
    outside = held - {id(p) for p in parameters.values()}
    if not outside and not frozen.trainable_at(first):
        raise UserError("the schedule freezes the whole model at epoch 0: nothing would train; thaw the head")


def look_for_unused_parameters(strategy: DDPStrategy) -> None:
    """Make DDP expect that some parameters get no gradient, as frozen ones do.

    DDP must wrap the module while all of its parameters are trainable; what it has not seen then, it never reduces,
    and the ranks drift apart without a word.

    Raises:
        UserError: The strategy was told otherwise.
    """
    options = strategy._ddp_kwargs
    if options.get("static_graph"):
        raise UserError("stages thaw during the fit, which DDP's static_graph forbids: leave static_graph out")
    if not options.setdefault("find_unused_parameters", True):
        raise UserError(
            "stages thaw during the fit, so DDP must look for unused parameters: pass strategy='ddp' (it is then set "
            "for you) or 'ddp_find_unused_parameters_true'"
        )
