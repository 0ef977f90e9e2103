"""Adam with compressed communication, see lit_opt.optim.onebit_adam.

No starting values are given: what is published (BERT-Large, lr 4e-4, 23,000 of 118,000 steps before the freeze) is of
none of the settings here.
"""

from __future__ import annotations

from lit_opt.optim.schema import REQUIRED, OptimizerRow
from lit_opt.optim.state import kept

ROWS = (
    OptimizerRow(
        name="onebit_adam",
        state=kept("exp_avg", "exp_avg_sq", "worker_error", "server_error"),
        scratch=None,
        factory="lit_opt.optim.onebit_adam:OneBitAdam",
        provider="lit_opt",
        summary="Adam whose processes exchange signs of momenta after a warm-up of freeze_step steps, under DDP",
        rule="c = b1 m + (1 - b1) g_i + e_i, sent as rms(c) sign(c); m the same of the mean; w <- w - lr (m / (sqrt(v) + eps) + wd w)",
        source="arXiv:2102.02888; equal to the formula in float64 in one process and two",
        evidence="published up to BERT-Large on 256 GPUs (DeepSpeed); the results depend on the number of processes",
        hyperparameters={
            "lr": REQUIRED,
            "freeze_step": REQUIRED,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
        },
        global_only=("freeze_step",),
        exchanges=True,
    ),
)
