"""Runs that are killed: `python -m tests.survival.runs FOLDER SEED KIND=KILLS ...` prints what happened, as JSON.

The parent imports everything once and forks a child for each process of each run. A child tells what it is doing through a
pipe, and is killed with SIGKILL: at a random moment between its first step and its end, or in the middle of the write of a
random checkpoint. Then it is started again with the last whole checkpoint of its folder, until it finishes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from lit_opt import EMASpec, Recipe
from lit_opt.callbacks.checkpoint_file import last_whole
from lit_opt.workloads import ByteText, Digits, ImageClassifier, LanguageModel
from tests.callbacks import processes
from tests.callbacks.modules import trainer

STEPS, WARMUP = 14, 5
PROCESSES = {"adamw": 1, "muon": 1, "sam": 1, "single": 1, "ddp": 2, "fsdp2": 2}


class Draws(LanguageModel):
    """Replaces bytes at random, so that the run depends on the global generator."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        noise = torch.rand(batch.shape) < 0.1
        return super().training_step(torch.where(noise, torch.randint_like(batch, 256), batch), batch_idx)


class Tells(Callback):
    """Writes a letter for each phase; half-way through the write of checkpoint number `hang` it waits to be killed."""

    def __init__(self, pipe: int, hang: int) -> None:
        self.pipe, self.hang, self.saves = pipe, hang, 0

    def tell(self, letter: str) -> None:
        os.write(self.pipe, letter.encode())

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.tell("w" if trainer.global_step < WARMUP else "d")

    def on_validation_start(self, *args: Any) -> None:
        self.tell("v")

    def on_train_start(self, *args: Any) -> None:
        self.tell("s")

        def slowly(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            """As where $TMPDIR is on another disk: a copy."""
            self.tell("c")
            self.saves += 1
            content = Path(source).read_bytes()
            with Path(target).open("wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                if self.saves == self.hang:
                    self.tell("h")
                    time.sleep(3600)
                file.write(content[len(content) // 2 :])
            Path(source).unlink()
            self.tell("C")

        shutil.move = slowly  # type: ignore[assignment]


def make(kind: str, rank: int) -> tuple[Any, Recipe, dict[str, Any], Any]:
    """Module, recipe, Trainer arguments and data."""
    seed_everything(1 + rank)
    ema = EMASpec(decay=0.9)
    how: dict[str, Any] = {"max_steps": STEPS}
    if kind in ("adamw", "muon"):
        module = Draws(layers=1, width=16, heads=2, mlp_width=32, context=16)
        data = ByteText(seq_len=16, batch_size=4, max_bytes=4000, val_windows=8)
        name = "llm" if kind == "adamw" else "llm/muon"
        more: dict[str, Any] = {"lr": 1e-2} if kind == "adamw" else {"fallback": {"lr": 1e-2}}
        how |= {"accumulate_grad_batches": 2} if kind == "adamw" else {}
        how |= {"val_check_interval": 6, "check_val_every_n_epoch": None}
        return module, Recipe(name, warmup=WARMUP, ema=ema, on_nonfinite="skip", **more), how, {"datamodule": data}
    if kind == "sam":
        how |= {"val_check_interval": 4, "check_val_every_n_epoch": None}
        recipe = Recipe("cnn", optimizer="sam", lr=0.05, weight_decay=1e-4, warmup=WARMUP, ema=ema)
        return ImageClassifier(width=0.0625), recipe, how, {"datamodule": Digits(batch_size=16, image_size=8)}
    net, strategy = processes.Draws(), "ddp" if kind == "ddp" else "auto"
    if kind == "fsdp2":
        net = processes.Sharded()
        strategy = ModelParallelStrategy(  # type: ignore[assignment]
            data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    recipe = Recipe("llm", optimizer="muon", lr=0.02, weight_decay=0.1, warmup=WARMUP, ema=ema,
                    optimizer_kwargs={"ns_dtype": "float32"})  # fmt: skip
    processes.STEPS = STEPS
    how |= {"strategy": strategy, "devices": PROCESSES[kind], "use_distributed_sampler": False}
    return net, recipe, how, {"train_dataloaders": processes.Share(rank, PROCESSES[kind])}


def fit(kind: str, folder: Path, rank: int, pipe: int, hang: int) -> None:
    """Train to the end, from the last whole checkpoint where there is one."""
    module, recipe, how, data = make(kind, rank)
    found, _ = last_whole([folder])
    keep = ModelCheckpoint(dirpath=folder, every_n_train_steps=2, save_last=True, save_top_k=1)
    t = trainer(Tells(pipe, hang), recipe, keep, **(how | {"enable_checkpointing": True}))
    t.fit(module, **data, ckpt_path=found)


def end_of(folder: Path) -> dict[str, Any] | None:
    """Everything that the last checkpoint holds of weights, optimizer, averages, schedule and random states."""
    found, _ = last_whole([folder])
    content = torch.load(found, weights_only=True) if found else {"global_step": 0}
    if content["global_step"] != STEPS:
        return None
    keys = ("state_dict", "ema_state_dict", "lit_opt_ema", "optimizer_states", "lr_schedulers", "lit_opt")
    return {key: content[key] for key in keys}


def start(kind: str, folder: Path, hang: int = 0) -> tuple[list[int], int]:
    """Fork the processes of a run. Returns their ids and the end of the pipe to read from."""
    out, into = os.pipe()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ids = []
    for rank in range(PROCESSES[kind]):
        child = os.fork()
        if child:
            ids.append(child)
            continue
        code = 1
        try:
            os.close(out)
            log = os.open(folder / f"log.{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if PROCESSES[kind] > 1:
                os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                               "MASTER_PORT": str(port)}  # fmt: skip
            fit(kind, folder, rank, into, hang)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(into)
    return ids, out


def wait(ids: list[int]) -> None:
    for child in ids:
        os.waitpid(child, 0)


def told(out: int, until: str = "", seconds: float | None = None) -> str:
    """Letters from the pipe: up to one of `until`, or for so long, or to its end."""
    letters = ""
    end = None if seconds is None else time.monotonic() + seconds
    while not (until and letters and letters[-1] in until):
        left = None if end is None else max(0.0, end - time.monotonic())
        if end is not None and not select.select([out], [], [], left)[0]:
            break
        read = os.read(out, 1)
        if not read:
            break
        letters += read.decode()
    return letters


def uninterrupted(kind: str, folder: Path) -> tuple[float, int]:
    """Seconds of its training, and how many checkpoints it writes."""
    folder.mkdir(parents=True)
    ids, out = start(kind, folder)
    told(out, until="s")
    begin = time.monotonic()
    letters = told(out)
    seconds = time.monotonic() - begin
    wait(ids)
    os.close(out)
    return seconds, letters.count("C")


def kill(ids: list[int]) -> None:
    for child in ids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    wait(ids)


def killed(kind: str, folder: Path, seconds: float, saves: int, rng: random.Random) -> list[str]:
    """Run with one or two kills to the end. Returns the phase of each kill."""
    folder.mkdir(parents=True)
    phases = []
    for _ in range(1 + (rng.random() < 0.3)):
        hang = rng.randint(1, saves) if rng.random() < 0.3 else 0
        ids, out = start(kind, folder, hang)
        letters = told(out, until="s")
        letters += told(out, until="h") if hang else told(out, seconds=rng.uniform(0, seconds))
        kill(ids)
        os.close(out)
        phases.append({"s": "start", "w": "warmup", "d": "decay", "v": "validation", "c": "writing", "C": "written",
                       "h": "half a file", "": "setup"}[letters[-1:]])  # fmt: skip
    ids, out = start(kind, folder)
    told(out)
    wait(ids)
    os.close(out)
    return phases


def difference(a: Any, b: Any) -> float:
    """The largest difference of two nests of numbers; inf where their shapes differ."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape:
            return float("inf")
        return 0.0 if torch.equal(a, b) else float((a.double() - b.double()).abs().max())
    if isinstance(a, dict):
        return difference([a.keys() == b.keys(), *a.values()], [True, *b.values()])
    if isinstance(a, list | tuple):
        parts = [difference(x, y) for x, y in zip(a, b, strict=False)]
        return max([0.0, *parts]) if len(a) == len(b) else float("inf")
    if a == b:
        return 0.0
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return float(abs(a - b)) if numbers else float("inf")


def moved(folder: Path, source: str, target: str) -> dict[str, Any]:
    """Kill a run of one kind in the write of its fifth checkpoint and go on with another number of processes."""
    uninterrupted(target, folder / "whole")
    here = folder / "moved"
    here.mkdir()
    ids, out = start(source, here, hang=5)
    told(out, until="h")
    kill(ids)
    os.close(out)
    ids, out = start(target, here)
    told(out)
    wait(ids)
    os.close(out)
    ends = [end_of(folder / "whole"), end_of(here)]
    if ends[0] is None or ends[1] is None:
        return {"failed": (here / "log.0").read_text()[-3000:]}
    keys = ("state_dict", "ema_state_dict", "optimizer_states")
    found = {key: difference(ends[0][key], ends[1][key]) for key in keys}
    return {"phases": ["half a file"], "differences": [max(found.values())], "unequal": found}


def main(folder: Path, kind: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill `kills` runs and compare each end with the uninterrupted one."""
    rng = random.Random(seed)
    seconds, saves = uninterrupted(kind, folder / "whole")
    results: dict[str, Any] = {"kind": kind, "seconds": seconds, "saves": saves, "phases": [], "differences": []}
    for number in range(kills):
        here = folder / str(number)
        results["phases"] += killed(kind, here, seconds, saves, rng)
        ends = [end_of(folder / "whole"), end_of(here)]
        if None in ends:
            return results | {"failed": (here / "log.0").read_text()[-3000:]}
        found = {key: difference(ends[0][key], ends[1][key]) for key in ends[0]}  # type: ignore[index,union-attr]
        results["differences"].append(max(found.values()))
        results |= {"unequal": {k: v for k, v in found.items() if v}} if any(found.values()) else {}
        shutil.rmtree(here)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, seed, *kinds = sys.argv[1:]
    results: dict[str, Any] = {}
    for kind, _, kills in (word.partition("=") for word in kinds):
        source, _, target = kind.partition("-")
        where = Path(folder) / kind
        results[kind] = moved(where, source, target) if target else main(where, kind, int(kills), int(seed))
    print(json.dumps(results))
