"""Real steps whose memory is measured: in this process, and `python -m tests.preflight.measured FOLDER RANK ...` in
each of two processes with FSDP2 or tensor parallelism, where each writes FOLDER/RANK.json.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile, record_function

from lit_opt import Recipe

ROOT = Path(__file__).parents[2]


class Block(nn.Module):
    """Two linear layers of uneven width, and a norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Language(nn.Module):
    """An embedding, four blocks and a head; two processes cannot cut its rows evenly."""

    def __init__(self, width: int = 48, hidden: int = 0, words: int = 101) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, hidden or 2 * width + 3) for _ in range(4))
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def recipe(name: str, **kwargs: Any) -> Recipe:
    """A recipe with that optimizer; every row takes these. What decomposes now and then does so in each step."""
    if name in ("soap", "splus", "shampoo"):
        kwargs = {"optimizer_kwargs": {"precondition_frequency": 1}} | kwargs
    return Recipe("llm", optimizer=name, lr=1e-3, weight_decay=0.1, warmup=2, total_steps=8, **kwargs)


def network(width: int = 48) -> Language:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Language(width)


def local_bytes(tensor: Tensor) -> int:
    part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part.numel() * part.element_size()


def held_by(optimizer: Optimizer) -> int:
    """Bytes of the state's tensors in this process."""
    return sum(local_bytes(t) for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))


def most_at_once(function: Callable[[], Any], before: Callable[[], Any] | None = None) -> int:
    """The largest growth of torch's CPU memory inside the function, by the profiler's record of allocations.

    The profiler does not see that something is freed that was there when it began. `before` runs under it, too.
    """
    if before is None:
        return max(_growth(function))

    def both() -> None:
        before()
        with record_function(_WINDOW):
            function()

    first, *inside = _growth(both, _WINDOW)
    return max(inside, default=first) - first


def left_after(function: Callable[[], Any]) -> int:
    """What torch's CPU memory has grown by when the function has returned."""
    return _growth(function)[-1]


_WINDOW = "measured from here"


def _growth(function: Callable[[], Any], window: str = "") -> list[int]:
    gc.collect()
    gc.disable()  # what earlier tests have left would be freed inside
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            function()
    finally:
        gc.enable()
    found = measured.profiler.kineto_results.events()
    events = sorted((e for e in found if e.name() == "[memory]"), key=lambda e: e.start_ns())
    sizes = list(accumulate((event.nbytes() for event in events), initial=0))
    if not window:
        return sizes
    start = next(e.start_ns() for e in found if e.name() == window)
    return sizes[sum(event.start_ns() < start for event in events) :]


def backward(module: nn.Module) -> None:
    tokens = torch.arange(24).view(2, 12) % 101
    module.zero_grad()
    module(tokens).logsumexp(-1).mean().backward()


def measure(name: str, module: nn.Module, *, scratch: bool = True) -> dict[str, int]:
    """After a step: bytes of the state, and of weights, gradients and state together; the scratch of the next."""
    optimizer, _ = recipe(name).configure(module, total_steps=8, global_batch=2)
    backward(module)
    optimizer.step(lambda: 0.0)  # SAM takes the gradients that are there
    rest = sum(local_bytes(p) + local_bytes(p.grad) for p in module.parameters() if p.grad is not None)
    found = {"state": held_by(optimizer), "held": held_by(optimizer) + rest}
    if scratch and hasattr(optimizer, "columns_of"):
        found["scratch"] = _with_records(module, optimizer)
    elif scratch:
        backward(module)
        found["scratch"] = most_at_once(lambda: optimizer.step(lambda: 0.0))
    assert held_by(optimizer) == found["state"]
    return found


def _with_records(module: nn.Module, optimizer: Any) -> int:
    """K-FAC's step replaces what it holds, and ends with what the backward pass has recorded."""
    recorded = 0

    def before() -> None:
        nonlocal recorded
        backward(module)
        optimizer.step()
        backward(module)
        recorded = sum(local_bytes(t) for r in optimizer._records.values() for t in (r.A, r.G))

    return most_at_once(optimizer.step, before) + recorded


def even(width: int) -> Language:
    """torch's tensor parallelism multiplies no uneven parts."""
    return Language(width, 2 * width, 104)


def tensor_parallel(width: int) -> nn.Module:
    """Llama's usual plan on two processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    module = even(width)
    plan: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
        **{f"blocks.{i}.up": ColwiseParallel() for i in range(len(module.blocks))},
        **{f"blocks.{i}.down": RowwiseParallel() for i in range(len(module.blocks))},
    }
    return parallelize_module(module, init_device_mesh("cpu", (2,)), plan)


def sharded(width: int) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    module = network(width)
    for block in module.blocks:
        fully_shard(block)
    fully_shard(module)
    return module


def two_processes(
    folder: Path, width: int, names: list[str], *, scratch: bool = True, how: str = "sharded"
) -> list[dict[str, Any]]:
    """What each of two processes measured, by optimizer; `how` is "sharded" (FSDP2) or "tensor_parallel"."""
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.preflight.measured",
                str(folder),
                str(rank),
                str(width),
                str(scratch),
                how,
                *names,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate()[0] for process in started]
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, text[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def main(folder: Path, rank: int, width: int, scratch: bool, how: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = measure(
                name, {"sharded": sharded, "tensor_parallel": tensor_parallel}[how](width), scratch=scratch
            )
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            found[name] = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True", sys.argv[5], sys.argv[6:])
