"""Time and traffic of a Muon step on FSDP2 weights: lit_opt, torch.optim.Muon by DTensor dispatch, gathering all.

    python -m benchmarks.sharded_step

writes benchmarks/results/sharded_step.md. In each of two and of four processes (gloo, one thread each) all variants
step on the same weights and gradients, interleaved, with a barrier before and after each step.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.optimizer_step import cpu_name
from lit_opt.averaging.shards import local, own_part
from lit_opt.optim import build
from lit_opt.optim.matrix.orthogonalize import orthogonalize_

RESULT = Path(__file__).parent / "results" / "sharded_step.md"
ROUNDS = 9
OURS = "lit_opt"
TORCHS = "torch.optim.Muon"
GATHERED = "gathering all"
MODELS = {"GPT-2, d = 256, 12 layers": (256, 12), "GPT-2, d = 64, 12 layers": (64, 12)}


class Matrices(nn.Module):
    """The hidden matrices of GPT-2, without a forward pass."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers
        self.weights = nn.ParameterList(Parameter(torch.randn(s, generator=generator) * 0.02) for s in shapes)


def sharded(width: int, layers: int) -> list[Any]:
    module = Matrices(width, layers)
    fully_shard(module, mesh=_mesh())
    params = list(module.parameters())
    _KEPT.append(module)
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    for param in params:
        param.grad = torch.zeros_like(param)
        local(param.grad).normal_(generator=generator)
    return params


_MESHES: list[Any] = []
_KEPT: list[nn.Module] = []


def _mesh() -> Any:
    if not _MESHES:
        _MESHES.append(init_device_mesh("cpu", (dist.get_world_size(),)))
    return _MESHES[0]


def gathering(params: list[Any]) -> Callable[[], None]:
    """Each process gathers every matrix, computes all in batches of one shape, and cuts its own part."""
    buffers = [torch.zeros_like(param) for param in params]
    shapes: dict[Any, list[int]] = {}
    for index, param in enumerate(params):
        shapes.setdefault(tuple(param.shape), []).append(index)

    @torch.no_grad()
    def step() -> None:
        torch._foreach_lerp_([local(b) for b in buffers], [local(p.grad) for p in params], 0.05)
        torch._foreach_mul_([local(p) for p in params], 1 - 1e-5 * 0.01)
        for (rows, cols), indices in shapes.items():
            mixed: list[Any] = [torch.lerp(params[i].grad, buffers[i], 0.95) for i in indices]
            wholes = [one.full_tensor() for one in mixed]
            updates = orthogonalize_([torch.stack(wholes)], "jordan", 5, torch.bfloat16)[0].float()
            for i, update in zip(indices, updates, strict=True):
                local(params[i]).add_(own_part(update, params[i]), alpha=-1e-5 * max(1, rows / cols) ** 0.5)

    return step


class Counting(TorchDispatchMode):
    """Collectives, and the bytes that a process sends to others by the usual algorithms of each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, space = func._opname, func.namespace
        others = dist.get_world_size() - 1
        quiet = name.startswith(("wait", "_wrap", "barrier"))
        if space in ("c10d", "_c10d_functional") and not quiet:
            self.calls += 1
            if "all_gather" in name or "allgather" in name:
                self.bytes += others * args[1 if space == "c10d" else 0].nbytes
            elif "alltoall" in name:
                sizes, unit = (args[4], 1) if space == "c10d" else (args[2], args[0].nbytes // args[0].size(0))
                self.bytes += unit * sum(size for rank, size in enumerate(sizes) if rank != dist.get_rank())
            elif "reduce_scatter" in name:
                self.bytes += args[0].nbytes * others / (others + 1)
            elif "all_reduce" in name or "allreduce" in name:
                tensors = args[0] if isinstance(args[0], list) else [args[0]]
                self.bytes += 2 * sum(t.nbytes for t in tensors) * others / (others + 1)
            else:
                raise AssertionError(f"{space}.{name}")
        return result


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    found: dict[str, Any] = {}
    for model, (width, layers) in MODELS.items():
        steps: dict[str, Callable[[], Any]] = {
            OURS: build("muon", sharded(width, layers), lr=1e-5, orthogonalize="jordan", ns_dtype="bfloat16").step,
            TORCHS: torch.optim.Muon(sharded(width, layers), lr=1e-5, weight_decay=0.01).step,
            GATHERED: gathering(sharded(width, layers)),
        }
        traffic = {}
        for name, step in steps.items():
            step()
            with Counting() as counted:
                step()
            traffic[name] = (counted.calls, counted.bytes)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        order = random.Random(0)
        for _ in range(ROUNDS):
            for name in order.sample(list(steps), len(steps)):
                dist.barrier()
                start, cpu = time.perf_counter(), time.process_time()
                steps[name]()
                cpu = time.process_time() - cpu
                dist.barrier()
                times[name].append((1e3 * (time.perf_counter() - start), 1e3 * cpu))
        found[model] = (traffic, times)
    torch.save(found, f"{folder}/{world}.{rank}.pt")
    dist.destroy_process_group()


def table(world: int, model: str, ranks: list[dict[str, Any]]) -> list[str]:
    """Wall time is the slowest process's, processor time that of all processes together."""
    lines = []
    walls, cpus = {}, {}
    for name in (OURS, TORCHS, GATHERED):
        each = [rank[model][1][name] for rank in ranks]
        walls[name] = statistics.median(max(rank[i][0] for rank in each) for i in range(ROUNDS))
        cpus[name] = statistics.median(sum(rank[i][1] for rank in each) for i in range(ROUNDS))
    for name in (OURS, TORCHS, GATHERED):
        calls = ranks[0][model][0][name][0]
        sent = max(rank[model][0][name][1] for rank in ranks)
        # DTensor's own collectives do not pass through the mode that counts.
        moved = f"{calls} | {sent / 1e6:.1f} MB" if name != TORCHS else "not counted | not counted"
        lines.append(
            f"| {model} | {world} | {name} | {walls[name]:.0f} ms | {walls[name] / walls[OURS]:.1f}x "
            f"| {cpus[name]:.0f} ms | {cpus[name] / cpus[OURS]:.1f}x | {moved} |"
        )
    return lines


def main() -> None:
    """Write the table."""
    lines = [
        "# A Muon step on FSDP2 weights",
        "",
        f"Written by `python -m benchmarks.sharded_step` on {cpu_name()}, torch {torch.__version__}, gloo, one thread a "
        f"process, float32 weights, bfloat16 iteration (jordan, 5 steps) for all. **Not run on a GPU.** Medians of "
        f"{ROUNDS} interleaved rounds on a machine of two processors with other programs on it: read to one digit; "
        "four processes share its two processors, so their wall time says little. Wall time: from barrier to barrier, "
        "the slowest process. Processor time: of all processes together. Sent: by the process that sends most, in one "
        "step; collectives: the number of calls.",
        "",
        "- lit_opt: one all-to-all to owners and one back for each bucket, the next in flight.",
        "- torch.optim.Muon: the same weights, by DTensor dispatch.",
        "- gathering all: every process gathers each matrix, computes all of them in batches, and cuts its part (what "
        "lit_opt did before).",
        "",
        "| matrices | processes | step | wall | ratio | processor | ratio | collectives | sent |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for world in (2, 4):
            mp.spawn(work, args=(world, folder), nprocs=world)
            ranks = [torch.load(f"{folder}/{world}.{rank}.pt") for rank in range(world)]
            for model in MODELS:
                lines += table(world, model, ranks)
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
