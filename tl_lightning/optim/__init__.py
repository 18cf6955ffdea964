"""Parameter groups by stage and learning-rate schedules."""

from tl_lightning.optim.lr_scale import effective_lr, effective_lrs, install_lr_scale
from tl_lightning.optim.memory_format import match_memory_format
from tl_lightning.optim.param_groups import is_no_decay, parameter_names, split_groups_by_stage, stage_param_groups
from tl_lightning.optim.scheduler_groups import expand_schedulers
from tl_lightning.optim.schedules import ScheduleName, lr_multiplier
from tl_lightning.optim.state_names import match_state_by_name

__all__ = [
    "ScheduleName",
    "effective_lr",
    "effective_lrs",
    "expand_schedulers",
    "install_lr_scale",
    "is_no_decay",
    "lr_multiplier",
    "match_memory_format",
    "match_state_by_name",
    "parameter_names",
    "split_groups_by_stage",
    "stage_param_groups",
]
