"""1-bit Adam: after a warm-up, processes exchange the signs of their momentum instead of gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lit_opt.averaging.shards import is_sharded
from lit_opt.errors import RecipeError
from lit_opt.optim.onebit_messages import compressed, compute_dtype, take


class OneBitAdam(Optimizer):
    """Adam that sends about one bit of a number, under DistributedDataParallel.

    Up to `freeze_step` it is Adam without bias correction on averaged gradients. Then v stays as it is and gradients
    are no longer averaged; with i the process, g_i its own gradient and e errors that are carried on:

        c_i = b1 m + (1 - b1) g_i + e_i,  q_i = |c_i| / sqrt(numbers) sign(c_i),  e_i = c_i - q_i
        a = mean of q_i + e_s,  m = |a| / sqrt(numbers) sign(a),  e_s = a - m
        w <- w - lr (m / (sqrt(v) + eps) + weight_decay w)

    for each tensor, with sign(0) = 1, also in one process. Each tensor has one process that averages it. A process sends
    the signs as bits, eight in a byte, and one scale a tensor, once to the averaging process and once back: about 2 bits
    of a number, where a ring all-reduce in float32 sends 64 (both times (n - 1) / n). `bytes_sent` counts them.

    v has to be settled by then: Tang et al. freeze after 15 to 25 % of a run. Rates and decays as for Adam, though
    without bias correction the first steps are about (1 - b1) / sqrt(1 - b2) = 3.2 times as long: warm lr up.
    Gradients are clipped by each process by itself once they are no longer averaged, and a parameter cannot join then.
    A GradScaler is not supported: processes would skip different steps.

    Errors differ between processes, so a checkpoint is made of all: call `consolidate_state_dict()` in every process
    before `state_dict()` in one, as for ZeroRedundancyOptimizer; Lightning does. With another number of processes each
    goes on with the mean of the errors.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts.
        lr: Learning rate.
        freeze_step: Steps of plain Adam, from 1 up; one for all groups.
        betas: Decay of m and v, each in [0, 1).
        eps: Added to the root of v.
        weight_decay: Decoupled, multiplied by lr.

    Raises:
        RecipeError: An option out of bounds, or sharded parameters.

    Source: https://arxiv.org/abs/2102.02888, algorithm 1; deepspeedai/DeepSpeed runtime/fp16/onebit/adam.py, which pads
    tensors, has a server error for each slice, does not compress in one process and drops the errors when it loads.

    Example:
        >>> from lit_opt.optim import build
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = build("onebit_adam", layer.parameters(), lr=1e-3, freeze_step=100)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.steps, optimizer.frozen
        (1, False)
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        freeze_step: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if freeze_step < 1 or freeze_step != int(freeze_step):
            raise RecipeError(
                [f"freeze_step: {freeze_step!r} is not a number of steps from 1 up. 15 to 25 % of the run is usual."]
            )
        self._start()
        defaults = {"algorithm": "onebit_adam", "freeze_step": int(freeze_step)}
        super().__init__(
            params, {**defaults, "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_registered" not in self.__dict__:  # a copy; load_state_dict comes here as well
            self._start()

    def _start(self) -> None:
        self.bytes_sent = 0
        """Bytes that this process sent of momenta; the averaging of gradients before is DDP's."""
        self._registered = False
        self._group: Any = None
        self._gathered: tuple[int, dict[Tensor, tuple[Tensor, Tensor]]] = (-1, {})

    @property
    def steps(self) -> int:
        """Steps so far."""
        return max((state.get("step", 0) for state in self.state.values()), default=0)

    @property
    def frozen(self) -> bool:
        """Whether the next step exchanges momenta: v is frozen and gradients are not averaged any more."""
        return bool(self.steps >= self.param_groups[0]["freeze_step"])

    def register(self, module: nn.Module, process_group: Any = None) -> None:
        """Have DistributedDataParallel average gradients up to `freeze_step` and leave them alone from then on.

        Args:
            module: The DistributedDataParallel model, before its first backward pass.
            process_group: The group that it was made with; None for all processes.

        Raises:
            RecipeError: Another module, or one that has a communication hook.
        """
        if not isinstance(module, DistributedDataParallel):
            raise RecipeError(
                [
                    f"module: {type(module).__name__} is no DistributedDataParallel model, and onebit_adam exchanges momenta "
                    "in its place. Wrap the model, or train in one process without register."
                ]
            )
        try:
            # torch reads the annotations of a hook, and cannot read those that are strings.
            module.register_comm_hook(weakref.ref(self), lambda ours, bucket: _averaged_or_own(ours, bucket))
        except RuntimeError as error:
            raise RecipeError(
                [
                    "module: the DistributedDataParallel model has a communication hook already, and it takes one. Leave "
                    "ddp_comm_hook away: onebit_adam brings its own."
                ]
            ) from error
        self._registered, self._group = True, process_group

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group.

        Raises:
            RecipeError: Its parameters are sharded.
        """
        super().add_param_group(param_group)
        if any(is_sharded(param) for param in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise RecipeError(
                [
                    "params: they are sharded (FSDP2), and onebit_adam compresses whole tensors that every process has. "
                    "Train with DDP, or choose 'adamw'."
                ]
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; from `freeze_step` on a collective.

        Args:
            closure: Evaluates the model, calls backward and returns the loss, which is returned, as in torch.

        Raises:
            RecipeError: Several processes without `register`, or a parameter that joins when v is frozen.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        frozen, now = self.frozen, self.steps + 1
        active = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if frozen:
            self._refuse(active)
            self._exchange(active)
        for param, group in active:
            state = self.state[param]
            if not frozen:
                if "exp_avg" not in state:
                    state |= {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
                beta1, beta2 = group["betas"]
                state["exp_avg"].lerp_(param.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
            state["step"] = now
            update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
            param.sub_(update.add_(param, alpha=group["weight_decay"]), alpha=group["lr"])
        return loss

    def _refuse(self, active: Sequence[tuple[Tensor, dict[str, Any]]]) -> None:
        if self._world()[1] > 1 and not self._registered:
            raise RecipeError(
                [
                    "onebit_adam: several processes, and it is not registered with their model, which therefore still "
                    "averages gradients. Call optimizer.register(ddp_model) before the first step (also after deepcopy and "
                    "pickle); a Recipe does so under DDPStrategy."
                ]
            )
        late = [tuple(param.shape) for param, _ in active if "exp_avg_sq" not in self.state[param]]
        if late:
            raise RecipeError(
                [
                    f"onebit_adam: a parameter of shape {late[0]} has its first gradient after freeze_step="
                    f"{self.param_groups[0]['freeze_step']}, when there is no second moment to be had. Train it from the start, "
                    "or go on with a new optimizer."
                ]
            )

    def _exchange(self, active: Sequence[tuple[Tensor, dict[str, Any]]]) -> None:
        """Replace each exp_avg by the compressed mean of the processes' momenta."""
        rank, world = self._world()
        owners = self._owners(world)
        messages: list[list[Tensor]] = [[] for _ in range(world)]
        for param, group in active:
            state, beta1 = self.state[param], group["betas"][0]
            dtype = compute_dtype(param)
            c = state["exp_avg"].to(dtype) * beta1 + param.grad.to(dtype) * (1 - beta1)  # type: ignore[union-attr]
            if "worker_error" in state:
                c += state["worker_error"]
            message, decoded = compressed(c)
            state["worker_error"] = c - decoded
            messages[owners[param]].append(message)
        mine = [param for param, _ in active if owners[param] == rank]
        sizes = [sum(len(part) for part in parts) for parts in messages]
        received = self._all_to_all(list(chain.from_iterable(messages)), sizes, [sizes[rank]] * world)
        replies = []
        for param in mine:
            a = torch.stack([take(received, process, param) for process in range(world)]).mean(dim=0)
            state = self.state[param]
            if "server_error" in state:
                a += state["server_error"]
            message, decoded = compressed(a)
            state["server_error"] = a - decoded
            replies.append(message)
        answers = self._all_to_all(replies * world, [sizes[rank]] * world, sizes)
        for param, _ in active:
            self.state[param]["exp_avg"].copy_(take(answers, owners[param], param))

    def _all_to_all(self, parts: list[Tensor], send: list[int], receive: list[int]) -> list[Tensor]:
        """Bytes from each process, as a queue of one chunk a process; `parts` in the order of their receivers."""
        rank, world = self._world()
        device = self.param_groups[0]["params"][0].device
        outgoing = torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=device)
        if world == 1:
            return [outgoing]
        incoming = outgoing.new_empty(sum(receive))
        torch.distributed.all_to_all_single(incoming, outgoing, receive, send, group=self._group)
        self.bytes_sent += sum(send) - send[rank]
        return list(incoming.split(receive))

    def _world(self) -> tuple[int, int]:
        dist = torch.distributed
        if not (dist.is_available() and dist.is_initialized()):
            return 0, 1
        return dist.get_rank(self._group), dist.get_world_size(self._group)

    def _owners(self, world: int) -> dict[Tensor, int]:
        """Which process averages a tensor: the one with the fewest numbers so far. Later groups do not change it."""
        load = [0] * world
        owners = {}
        for param in chain.from_iterable(group["params"] for group in self.param_groups):
            owners[param] = min(range(world), key=lambda rank: (load[rank], rank))
            load[owners[param]] += param.numel()
        return owners

    # ---- checkpoints

    @torch.no_grad()
    def consolidate_state_dict(self, to: int = 0) -> None:
        """Bring the errors of all processes together, for `state_dict`; every process has to call it.

        Args:
            to: Not used, since every process gets them; Lightning and ZeroRedundancyOptimizer have it.
        """
        _, world = self._world()
        owners = self._owners(world)
        gathered = {}
        for param in chain.from_iterable(group["params"] for group in self.param_groups):
            state = self.state.get(param, {})
            if "worker_error" not in state:
                continue
            own = state["worker_error"]
            both = torch.stack([own, state.get("server_error", torch.zeros_like(own))])
            everyone = both.new_empty(world, *both.shape)
            if world > 1:
                torch.distributed.all_gather_into_tensor(everyone, both.unsqueeze(0), group=self._group)
            else:
                everyone.copy_(both)
            gathered[param] = (everyone[:, 0].cpu(), everyone[owners[param], 1].cpu())
        self._gathered = (self.steps, gathered)

    def state_dict(self) -> dict[str, Any]:
        """As torch's; "worker_error" has one row for each process.

        Raises:
            RecipeError: Errors of several processes that `consolidate_state_dict` was not called for at this step.
        """
        has_errors = any("worker_error" in state for state in self.state.values())
        if has_errors and self._gathered[0] != self.steps:
            if self._world()[1] > 1:
                message = "each process has its own compression errors. Call optimizer.consolidate_state_dict() in every process"
                raise RecipeError([f"onebit_adam: {message} before state_dict()."])
            self.consolidate_state_dict()
        found = super().state_dict()
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        ids = chain.from_iterable(group["params"] for group in found["param_groups"])
        for key, param in zip(ids, params, strict=True):
            if has_errors and param in self._gathered[1]:
                worker, server = self._gathered[1][param]
                found["state"][key] = {**found["state"][key], "worker_error": worker, "server_error": server}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; each process takes its own errors."""
        super().load_state_dict(state_dict)
        rank, world = self._world()
        owners = self._owners(world)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, param in zip(ids, params, strict=True):
            saved = state_dict["state"].get(key, {})
            if "worker_error" not in saved:
                continue
            worker, state = saved["worker_error"], self.state[param]
            own = worker[rank] if len(worker) == world else worker.mean(dim=0)
            # Not as torch's loading left it: in half precision errors stay float32.
            state["worker_error"] = own.clone().to(param.device)
            state.pop("server_error", None)
            if owners[param] == rank:
                state["server_error"] = saved["server_error"].clone().to(param.device)
        self._gathered = (-1, {})


def _averaged_or_own(optimizer: weakref.ref[OneBitAdam], bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: averaged gradients, or the process's own when the optimizer exchanges momenta."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    ours = optimizer()
    if ours is None or not ours.frozen:
        return allreduce_hook(ours._group if ours is not None else None, bucket)  # type: ignore[arg-type]
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
