"""A run on several devices: a process for each, made for that run alone."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessException

from lit_opt.errors import RecipeError

_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
_LOOK = 1.0  # seconds between looks at the parent


@dataclass(frozen=True)
class Place:
    """Of this process among those of a run.

    Example:
        >>> Place().world
        1
    """

    rank: int = 0
    world: int = 1

    def name(self, use: str) -> str:
        """What a stream of random numbers is called here; rank 0 has those of a single process.

        Example:
            >>> Place().name("noise"), Place(1, 2).name("noise")
            ('noise', 'noise 1')
        """
        return f"{use} {self.rank}" if self.rank else use


_place = Place()


def place() -> Place:
    """Where this process stands: alone, or inside `on_ranks`.

    Example:
        >>> place()
        Place(rank=0, world=1)
    """
    return _place


def devices_of(trainer: Mapping[str, Any]) -> int:
    """Devices of a run, from keywords of the Trainer that `device_problems` has let through.

    Example:
        >>> devices_of({}), devices_of({"devices": 2})
        (1, 2)
    """
    return int(trainer.get("devices", 1))


def device_problems(trainer: Mapping[str, Any], workers: int) -> list[str]:
    """What is wrong with the devices that were asked for.

    Args:
        trainer: Keywords of the Trainer.
        workers: Of the comparison.

    Example:
        >>> device_problems({"devices": 2, "strategy": "ddp"}, 1), len(device_problems({"devices": "auto"}, 1))
        ([], 1)
    """
    devices, strategy = trainer.get("devices", 1), trainer.get("strategy", "auto")
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        return [
            f"trainer: devices: {devices!r} is not allowed; give their number. It decides the global batch, so it belongs to the "
            "protocol, and another machine must come to the same."
        ]
    problems = []
    if strategy not in (_STRATEGIES if devices > 1 else ("auto",)):
        known = ", ".join(repr(name) for name in _STRATEGIES[1:])
        problems.append(
            f"trainer: strategy: {strategy!r} is not allowed; "
            + (
                f"a run on several devices takes {known}."
                if devices > 1
                else "a run on one device has none. Leave it out, or give devices=N as well."
            )
        )
    if devices > 1 and workers > 1:
        problems.append(
            f"workers: {workers}, and each run takes {devices} devices: the runs would get the same ones. Leave workers out; on "
            "other machines that share the folder start the same command."
        )
    return problems


def on_ranks(function: Callable[..., Any], *args: Any, devices: int) -> Any:
    """Call a function in new processes that Lightning takes for those of one machine.

    Args:
        function: Defined at the top level of a module; it fits with `devices` of them.
        *args: Of it; can be sent.
        devices: How many processes.

    Returns:
        What it returned in the first process.

    Raises:
        RecipeError: Raised in any of the processes; the others are stopped.
        RuntimeError: A process ended otherwise; its traceback.

    Example:
        >>> on_ranks.__name__  # tests/comparison/test_ranks.py
        'on_ranks'
    """
    with tempfile.TemporaryDirectory(prefix="lit-opt-ranks-") as folder:
        result = Path(folder) / "result"
        given = (devices, _free_port(), torch.get_num_threads(), os.getpid(), result, function, args)
        # Not forked: torch's threads and CUDA do not survive it.
        context = mp.start_processes(_rank, given, nprocs=devices, join=False, start_method="spawn")
        assert context is not None
        ended = ""
        try:
            while not context.join():
                pass
        except ProcessException as error:
            ended = str(error).strip()
        finally:
            for process in context.processes:
                process.kill()
                process.join()
        if not result.exists():
            raise RuntimeError(
                f"{ended or 'a process of the run ended without a result'}. What it said is above. In a script the call belongs "
                "under `if __name__ == '__main__':`, since each process reads the script again."
            )
        value = pickle.loads(result.read_bytes())
    if isinstance(value, BaseException):
        raise value
    return value


def _rank(
    rank: int,
    devices: int,
    port: int,
    threads: int,
    parent: int,
    result: Path,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    global _place
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    torch.set_num_threads(threads)
    _place = Place(rank, devices)
    try:
        value = function(*args)
    except BaseException as error:
        # The others may wait for this one. Its exit ends them, so what it says is what counts.
        with suppress(FileExistsError, pickle.PicklingError, TypeError, AttributeError):
            _write_once(result, error)
        raise
    if rank == 0:
        _write_once(result, value)
    if dist.is_initialized():
        dist.destroy_process_group()


def _write_once(path: Path, value: Any) -> None:
    content = pickle.dumps(value)
    own = path.with_suffix(f".{os.getpid()}")
    own.write_bytes(content)
    os.link(own, path)  # whole, and the first one stays


def _end_with(parent: int) -> None:
    """Where the worker is killed, its processes go, too."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gathered(value: Any) -> list[Any]:
    """What each process has, in the order of their ranks.

    Example:
        >>> gathered("alone")
        ['alone']
    """
    if place().world == 1:
        return [value]
    found: list[Any] = [None] * place().world
    dist.all_gather_object(found, value)
    return found


def refuse_same_batches(digests: list[str]) -> None:
    """Refuse processes that trained on the same batches.

    Raises:
        RecipeError: Two hashes are equal.

    Example:
        >>> refuse_same_batches(["a", "b"])
    """
    if len(set(digests)) < len(digests):
        raise RecipeError(
            [
                f"train_dataloader: of {len(digests)} processes some got the same batches, so more devices would mean no more data. "
                "A plain DataLoader over a map-style dataset is divided among them; an IterableDataset, or a loader of another class, "
                "has to yield its own part in each process (torch.distributed.get_rank())."
            ]
        )
