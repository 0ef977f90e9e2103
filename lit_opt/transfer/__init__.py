"""Hyperparameters that transfer: tuned on a small model, carried over to a large one by named rules. No torch.

`spec` is what a user asks for, `width` the rule of each optimizer and parameter, `run` those of batch and horizon, and
`shapes` how the small model's shapes are kept and compared.
"""

from __future__ import annotations
