"""Optimizer state is restored by parameter name, never by position."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from tl_lightning.errors import UserError

_IDENTITY = ("params", "param_names")


def match_state_by_name(optimizer: Optimizer) -> None:
    """Make ``optimizer.load_state_dict`` match by ``param_names``; a second call changes nothing.

    torch matches by position: groups of equal sizes in another order load silently onto the wrong parameters. The
    groups must hold ``param_names``. After a load, ``optimizer.loaded_group_order`` holds the position of the saved
    group that every group came from, and the number of saved groups, so that schedulers can follow.
    """
    if not hasattr(optimizer, "loaded_group_order"):
        optimizer.loaded_group_order = None  # type: ignore[attr-defined]
        optimizer.register_load_state_dict_pre_hook(_reorder)


def _reorder(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the saved state in the order of the groups and parameters that ``optimizer`` has."""
    home = _saved_places(optimizer, saved["param_groups"])
    order: list[int] = []
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        sources = [home[name][0] for name in group["param_names"]]
        options = _agreed_options(group, [saved["param_groups"][i] for i in dict.fromkeys(sources)])
        groups.append(
            {
                **options,
                "params": [home[name][1] for name in group["param_names"]],
                "param_names": list(group["param_names"]),
                **{key: group[key] for key in ("name", "stage") if key in group},
            }
        )
        order.append(sources[0])
    optimizer.loaded_group_order = (order, len(saved["param_groups"]))  # type: ignore[attr-defined]
    return {**saved, "param_groups": groups}


def _saved_places(optimizer: Optimizer, saved_groups: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Return the group and the number of every saved parameter, by name."""
    if any("param_names" not in group for group in saved_groups):
        raise UserError(
            "the checkpoint's optimizer state has no parameter names, so it cannot be matched: it was saved without "
            "these callbacks; load the weights alone, or resume as it was trained"
        )
    home = {
        name: (position, number)
        for position, group in enumerate(saved_groups)
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    present = {name for group in optimizer.param_groups for name in group["param_names"]}
    if present != home.keys():
        only_here, only_there = sorted(present - home.keys()), sorted(home.keys() - present)
        what = f"lacks {only_here[0]}" if only_here else f"holds {only_there[0]}, which the optimizer does not train"
        raise UserError(f"the checkpoint's optimizer state does not fit: it {what}")
    return home


def _agreed_options(group: dict[str, Any], sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the options of the saved groups that make up one group; they must be the same."""
    ignored = (*_IDENTITY, "name", "stage")
    options = [{key: value for key, value in source.items() if key not in ignored} for source in sources]
    for other in options[1:]:
        different = sorted(k for k in options[0].keys() | other.keys() if options[0].get(k) != other.get(k))
        if different:
            raise UserError(
                f"the checkpoint trained the parameters of group {group.get('name', '?')!r} in groups with different "
                f"{', '.join(different)}: resume with the groups it was saved with"
            )
    return options[0]
