"""An optimizer around another one: both share groups and state, so that schedulers and checkpoints see one optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


class Wrapper(Optimizer):
    """Base of SAM, ASAM and Lookahead.

    `param_groups` and `state` are the base's own objects. Its state_dict has the format of the base's, with what the
    wrapper adds to a parameter's state beside it.

    Args:
        base: The optimizer that takes the steps. Leave it to the wrapper from here on.

    Example:
        >>> import torch
        >>> base = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        >>> wrapper = Wrapper(base)
        >>> wrapper.param_groups is base.param_groups and wrapper.state is base.state
        True
    """

    _ready = False

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        super().__init__(base.param_groups, {})
        self._ready = True
        self._share()

    def _share(self) -> None:
        self.defaults, self.param_groups, self.state = self.base.defaults, self.base.param_groups, self.base.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base."""
        if not self._ready:
            super().add_param_group(param_group)
            return
        # A matrix method knows its own name and AdamW's.
        own = self.base.defaults.get("algorithm")
        outer = {group["algorithm"] for group in self.param_groups if "algorithm" in group} - {"adamw"}
        if param_group.get("algorithm") in outer:
            param_group = {**param_group, "algorithm": own}
        self.base.add_param_group(param_group)
        group = self.param_groups[-1]
        if outer and group.get("algorithm") == own:
            group["algorithm"] = outer.pop()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the base, and share what it has then."""
        self.base.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base, "_ready": True}
