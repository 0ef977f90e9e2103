"""WHO gets what: every trainable parameter goes into exactly one named group, with the reason."""

from __future__ import annotations

from lit_opt.param_groups.groups import ParamGroups, group_parameters
from lit_opt.param_groups.placement import GroupSummary, ParamRow
from lit_opt.param_groups.snapshot import ParamSnapshot, clean_name, snapshot_parameters

__all__ = [
    "GroupSummary",
    "ParamGroups",
    "ParamRow",
    "ParamSnapshot",
    "clean_name",
    "group_parameters",
    "snapshot_parameters",
]
