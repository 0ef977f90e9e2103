"""Run by test_ema_processes.py, in two processes: `python -m tests.callbacks.ema_processes FOLDER`.

Each rank writes a file KIND/passed.RANK when all checks of that kind held on it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lit_opt import EMA, PostHocEMA
from lit_opt.averaging import reconstruct
from lit_opt.averaging.flat import flat_parts
from lit_opt.averaging.posthoc import power_gamma
from lit_opt.averaging.shards import clean_name, gathered, reshard
from tests.callbacks.ema_lib import SAFE, Net, loader, read, same
from tests.callbacks.ema_lib import averages as averages_of
from tests.callbacks.ema_lib import trainer as plain_trainer
from tests.callbacks.processes import allow_fsdp1_on_the_cpu

# "_sharded": a checkpoint in shards.
KINDS = ("ddp", "fsdp2", "fsdp2_sharded", "fsdp1", "fsdp1_sharded")
KIND = ""
FOLDER = Path(sys.argv[-1])
PROBE = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))


class Two(Net):
    """One frozen layer, an integer buffer, and a layer of 5 rows that two processes cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))
        self.net[0].requires_grad_(False)
        self.register_buffer("count", torch.tensor(7))
        self.fail = False
        self.seen: list[Tensor] = []
        self.save_to: Path | None = None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(self.net(PROBE))
        if self.fail:
            raise RuntimeError("boom")

    test_step = validation_step

    def on_validation_batch_end(self, *args: Any) -> None:
        if self.save_to is not None:  # not in the step: FSDP1 saves nothing inside a forward
            self.trainer.save_checkpoint(self.save_to)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        if KIND == "fsdp1":
            # FSDP1 on a CPU writes one tensor for both moments into a whole checkpoint (torch 2.15): a resume is off.
            return torch.optim.SGD(parameters, 0.1, momentum=0.9)
        return torch.optim.AdamW(parameters, 1e-2)


class Sharded(Two):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[3]):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class Whole(pl.Callback):
    """Whole weights after each batch; saves at one step."""

    def __init__(self, path: Path | None = None, step: int = 0) -> None:
        self.path, self.step = path, step
        self.train: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = whole(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.train.append(whole(pl_module))
        if self.path is not None and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def whole(module: pl.LightningModule) -> dict[str, Tensor]:
    root = module.trainer.strategy.model
    assert root is not None
    reshard(root)
    flat = flat_parts(root)
    return {
        clean_name(name): flat[id(p)].whole(p.detach()) if id(p) in flat else gathered(p.detach()).clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def module() -> Two:
    return Sharded() if KIND.startswith("fsdp2") else Two()


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    strategy: Any = "ddp"
    if KIND.startswith("fsdp1"):
        state: Any = "sharded" if KIND == "fsdp1_sharded" else "full"
        strategy = FSDPStrategy(auto_wrap_policy={nn.Linear}, use_orig_params=True, state_dict_type=state)
    elif KIND != "ddp":
        strategy = ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            save_distributed_checkpoint=KIND == "fsdp2_sharded",
        )
    return plain_trainer(*callbacks, strategy=strategy, devices=2, use_distributed_sampler=False, **options)


def own_batch() -> Any:
    """One batch, another on each rank, repeated."""
    return loader(16, seed=int(os.environ.get("LOCAL_RANK", 0)), equal=True)


def output_of_averages(path: Path) -> Tensor:
    """What a plain module with the averages of the file gives."""
    net = Two()
    EMA.load(net, path)
    with torch.no_grad():
        return net.net(PROBE)


def check_rule_swap_and_checkpoint() -> None:
    ema, trace, net = EMA(0.9), Whole(FOLDER / "five.ckpt", 5), module()
    fit = trainer(ema, trace, max_steps=8, val_check_interval=4, limit_val_batches=1)
    net.save_to = FOLDER / "in_validation.ckpt"
    fit.fit(net, own_batch(), loader(2))
    expected = trace.start
    for n, now in enumerate(trace.train, 1):
        d = min(0.9, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * now[name] for name in now}
    for name, value in averages_of(ema).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert same(whole(net), trace.train[-1])
    fit.save_checkpoint(FOLDER / "eight.ckpt")
    torch.testing.assert_close(net.seen[-1], output_of_averages(FOLDER / "eight.ckpt"))
    torch.testing.assert_close(net.seen[-1], output_of_averages(FOLDER / "in_validation.ckpt"))
    if fit.is_global_zero and not KIND.endswith("_sharded"):
        saved = read(FOLDER / "in_validation.ckpt")
        assert list(saved["state_dict"]) == list(saved["ema_state_dict"])
        assert all(torch.equal(saved["state_dict"][name], value) for name, value in trace.train[-1].items())
        assert int(saved["ema_state_dict"]["count"]) == 7
    # What was saved while the averages were in resumes from the raw weights.
    after = Whole()
    again = trainer(EMA(0.9), after, max_steps=9)
    again.fit(module(), own_batch(), ckpt_path=FOLDER / "in_validation.ckpt", **SAFE)
    assert same(after.start, trace.train[-1])


def check_resume(checkpoint: str) -> None:
    def fit(steps: int, step: int = 0, ckpt_path: Path | None = None) -> tuple[EMA, Whole]:
        ema, trace = (
            EMA(0.9, checkpoint=checkpoint, offload=checkpoint == "ema"),
            Whole(FOLDER / f"{checkpoint}.ckpt", step),
        )
        # Listed before EMA: saved when the step is taken and not yet averaged.
        run = trainer(trace, ema, max_steps=steps, val_check_interval=2, limit_val_batches=1)
        run.fit(module(), own_batch(), loader(2), ckpt_path=ckpt_path, **SAFE)
        return ema, trace

    ema, trace = fit(7, step=3)
    resumed, tail = fit(7, ckpt_path=FOLDER / f"{checkpoint}.ckpt")
    assert same(tail.start, trace.train[2])
    assert len(tail.train) == 4 and same(tail.train[-1], trace.train[-1])
    assert same(averages_of(resumed), averages_of(ema)) and resumed.updates == ema.updates == 7


def check_evaluation_of_a_file() -> None:
    for name in ("raw", "ema"):
        net = module()
        trainer(EMA(0.9)).test(net, loader(2), ckpt_path=FOLDER / f"{name}.ckpt", verbose=False, **SAFE)
        torch.testing.assert_close(net.seen[-1], output_of_averages(FOLDER / f"{name}.ckpt"))


def check_mean_and_posthoc() -> None:
    """SWA, and the snapshots of post-hoc EMA, of whole weights; both continue from a checkpoint."""
    if KIND.startswith("fsdp1"):
        return  # post-hoc EMA refuses it
    folder, path = FOLDER / "snapshots", FOLDER / "mean.ckpt"
    trace = Whole(path, 4)
    swa, posthoc = EMA(kind="swa", start_step=3, every=2), PostHocEMA(folder, every=4)
    trainer(trace, swa, posthoc, max_steps=8).fit(module(), own_batch())
    torch.distributed.barrier()
    found = reconstruct(folder, 0.10)
    power = power_gamma(0.10) + 1
    shares = (torch.arange(9, dtype=torch.float64) / 8).pow(power).diff()
    for name, value in averages_of(swa).items():
        mean = torch.stack([trace.train[step - 1][name] for step in (3, 5, 7)]).mean(dim=0)
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)
        expected = torch.einsum("s,s...->...", shares, torch.stack([now[name].double() for now in trace.train]))
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert int(found["count"]) == 7 and "net.0.weight" in found
    Two().load_state_dict(found)
    again, continued = EMA(kind="swa", start_step=3, every=2), PostHocEMA(folder, every=4)
    trainer(again, continued, max_steps=8).fit(module(), own_batch(), ckpt_path=path, **SAFE)
    torch.distributed.barrier()
    assert same(averages_of(again), averages_of(swa))
    assert same(reconstruct(folder, 0.10), found)


def check_weights_only() -> None:
    if KIND.endswith("_sharded"):
        return
    best = ModelCheckpoint(FOLDER / "best", save_weights_only=True, every_n_train_steps=4)
    ema, net = EMA(0.9), module()
    fit = trainer(ema, best, max_steps=4, enable_checkpointing=True)
    fit.fit(net, own_batch(), loader(2))
    if fit.is_global_zero:
        saved = read(best.best_model_path)["ema_state_dict"]
    for name, value in averages_of(ema).items():
        assert not fit.is_global_zero or torch.equal(saved[name], value)


def check_exception() -> None:
    ema, trace, net = EMA(0.9), Whole(), module()
    net.fail = True
    fit = trainer(trace, ema, max_steps=8, val_check_interval=4)
    try:
        fit.fit(net, own_batch(), loader(2))
    except RuntimeError as error:
        assert str(error) == "boom"
    else:
        raise AssertionError("no exception")
    assert same(whole(net), trace.train[-1])


if __name__ == "__main__":
    allow_fsdp1_on_the_cpu()
    for KIND in KINDS:
        FOLDER = Path(sys.argv[-1]) / KIND
        check_rule_swap_and_checkpoint()
        for word in ("raw", "ema"):
            check_resume(word)
        check_evaluation_of_a_file()
        check_mean_and_posthoc()
        check_weights_only()
        check_exception()
        (FOLDER / f"passed.{torch.distributed.get_rank()}").touch()
