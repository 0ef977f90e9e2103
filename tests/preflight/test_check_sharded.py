"""Two gloo processes on the CPU: what the checks see of modules that FSDP1 and FSDP2 have really sharded."""

from __future__ import annotations

import torch

from lit_opt.preflight.collect import collect
from tests.preflight.setups import LM, by_dimension, ids, llm, run, the
from tests.processes import in_two_processes


def _fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    from tests.preflight.setups import Block

    wrapped = FSDP(
        LM(), auto_wrap_policy=ModuleWrapPolicy({Block}), use_orig_params=True, device_id=torch.device("cpu")
    )
    groups = by_dimension(wrapped, 0.1)
    assert groups[0]["params"] == []  # the trap: nothing has two dimensions any more
    found = the(llm(module=wrapped, groups=groups, trainer={"flat": "flat shards (FSDP1)"}), "decay-on-nothing")
    assert found.level == "error" and "10 tensors with dimensions" in found.evidence
    matrix = [info for info in collect(wrapped, []).snapshot.parameters if info.name == "blocks.0.attn.weight"]
    assert [(info.shape, info.role) for info in matrix] == [((16, 16), "matrix")]

    from timm.optim.muon import Muon

    report = run(wrapped, Muon(wrapped.parameters(), lr=0.02, adjust_lr_fn="original", fallback_lr_scale=0.015))
    assert "muon-on-shards" in ids(report)  # read off the tensors, without a Trainer to say so


def _fsdp2() -> None:
    from torch.distributed.fsdp import fully_shard

    module = LM()
    for block in module.blocks:
        fully_shard(block)
    fully_shard(module)
    assert llm(module=module).findings == ()
    report = llm(module=module, groups=[{"params": list(module.parameters()), "weight_decay": 0.1}])
    assert "4 norm gains, 13 biases" in the(report, "decay-on-norms").message


def _both() -> None:
    _fsdp1()
    _fsdp2()


def test_sharded_modules():
    in_two_processes(_both)
