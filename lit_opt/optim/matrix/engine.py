"""One Optimizer for the Muon family: estimate the gradient, momentum, precondition, normalise, scale, decay and apply.

Not run on a GPU so far. By reading, and by running it on the "meta" device, a step there never waits for the device:
no number is read back, and rates may be 0-D tensors (orthogonalize="svd" waits inside torch).

A method is a subclass that names its `Stages`. Groups have an "algorithm": the method's name, or "adamw" for what
matrices are not meant for. All state is in self.state, and `p.grad` is never written to or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_opt.averaging.shards import local
from lit_opt.errors import RecipeError
from lit_opt.optim.matrix.adamw import adamw_update
from lit_opt.optim.matrix.batches import add_, decay_, fill_, matrices_of, mix_, place
from lit_opt.optim.matrix.groups import complete_group, matrices_and_rest
from lit_opt.optim.matrix.layout import blocks
from lit_opt.optim.matrix.orthogonalize import compute_dtype, orthogonalize_
from lit_opt.optim.matrix.plan import Chunk, Slot, bundles, make_plan
from lit_opt.optim.matrix.routes import Route, make_routes
from lit_opt.optim.matrix.scale import scale_factor
from lit_opt.optim.matrix.sharded import agree, meshes_of, step_divided
from lit_opt.optim.matrix.stages import Group, Stages

# Parameter -> estimate (None where the buffer alone counts), buffer and the buffer's share.
Mixes = dict[Tensor, tuple[Tensor | None, Tensor, float]]


class MatrixOptimizer(Optimizer):
    """Base of Muon, NorMuon, MarsM and Teon, which have the arguments. A subclass names itself and its stages.

    Args:
        params: Tensors, (name, tensor) pairs or group dicts.
        defaults: The method's options for groups that do not have them.
        fallback: lr, betas, eps and weight_decay of the AdamW part.

    Raises:
        RecipeError: An option that does not fit the parameters.

    Example:
        >>> from lit_opt.optim import Muon, NorMuon
        >>> Muon.stages.normalise is None, NorMuon.stages.normalise.__name__
        (True, 'normalised_rows')
    """

    name: ClassVar[str]
    stages: ClassVar[Stages] = Stages()
    _group: Any = None
    _processes: int = 1

    def __init__(self, params: Any, defaults: dict[str, Any], fallback: Mapping[str, Any] | None = None) -> None:
        self._forget_plan()
        given = {f"fallback_{key}": value for key, value in (fallback or {}).items()}
        super().__init__(params, {"algorithm": self.name, "layout": None, **defaults, **given})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_plan()

    def _forget_plan(self) -> None:
        self._plan: tuple[list[Chunk], list[list[Tensor]]] | None = None
        self._plan_key: Any = None
        self._routes: list[Route] | None = None

    def share_work(self, group: Any = None) -> None:
        """Let each process of a data-parallel run orthogonalise its share of the matrices.

        Only for processes that hold the same weights and step on the same gradients, as under DDP; every one has to
        call this, and after deepcopy and pickle again. A Recipe calls it under Lightning's DDP. Without it each process computes everything, with the same
        result.

        Args:
            group: The process group; None for all processes.
        """
        self._group, self._processes = group, torch.distributed.get_world_size(group)
        self._forget_plan()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are completed and checked.

        Args:
            param_group: "params" and any option. "algorithm" is the method's name (default) or "adamw".

        Raises:
            RecipeError: An option that does not fit the parameters; nothing is added then.
        """
        given = set(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        problems = complete_group(group, given, self.defaults, self.name)
        if group["algorithm"] == self.name and not problems:
            problems = self.problems_of(group, given)
        if problems:
            self.param_groups.pop()
            raise RecipeError(problems)

    def problems_of(self, group: dict[str, Any], given: set[str]) -> list[str]:
        """What is wrong with the method's own options in a group, in words; `given` are the caller's keys."""
        return []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: Evaluates the model and returns the loss, as in torch.

        Returns:
            What the closure returned, or None.
        """
        loss = self._evaluate(closure)
        active = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        chunks, rest = self._planned(active)
        for group, params in zip(self.param_groups, rest, strict=True):
            if params:
                self._step_rest(group, params)
        self._step_matrices(chunks)
        return loss

    def _step_matrices(self, chunks: list[Chunk]) -> None:
        step_divided(self, self._routes or ())
        mixes: Mixes = {}
        for some in bundles(chunks):
            self._step_bundle(some, mixes)

    def _step_bundle(self, chunks: list[Chunk], mixes: Mixes) -> None:
        batches = [self._gather(chunk, mixes) for chunk in chunks]
        views = [[self._kept(chunk, slot) for slot in chunk.slots] if self._beside(chunk) else [] for chunk in chunks]
        kept = [torch.cat(view).to(chunk.dtype) if view else None for chunk, view in zip(chunks, views, strict=True)]
        found = self._directions(chunks, batches, kept)
        for chunk, batch, view, (update, changed) in zip(chunks, batches, views, found, strict=True):
            if changed is not None:
                torch._foreach_copy_(view, [changed[slot.place] for slot in chunk.slots])
            # The batch is scratch by now.
            self._apply(chunk, batch.copy_(update) if update.dtype != batch.dtype else update)

    def _evaluate(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def _takes(self, group: Group) -> bool:
        """Whether the matrices of a group go through the stages."""
        return bool(group["algorithm"] != "adamw")

    def _step_rest(self, group: Group, params: list[Tensor]) -> None:
        """A step of what goes through no stages, by AdamW."""
        own = group["algorithm"] == "adamw"
        decay = group["weight_decay"] if own else group["fallback_weight_decay"]
        adamw_update(
            params,
            [self.state[param] for param in params],
            lr=group["lr"] if own else group["lr"] * group["fallback_lr_ratio"],
            betas=group["betas" if own else "fallback_betas"],
            eps=group["eps" if own else "fallback_eps"],
            weight_decay=group["weight_decay"] if decay is None else decay,
        )

    def _open(self, index: int, params: Sequence[Tensor]) -> tuple[list[Tensor] | None, list[Tensor], float]:
        """Stages 1 and 2 for some matrices of a group: estimates, buffers and their share."""
        group = self.param_groups[index]
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(param)
        estimates = self.stages.estimate(group, params, states)
        share = self.stages.momentum(group, estimates, states)
        return None if share == 1.0 else estimates, [state["momentum_buffer"] for state in states], share

    def _planned(self, active: list[list[Tensor]]) -> tuple[list[Chunk], list[list[Tensor]]]:
        """The chunks, and each group's parameters for AdamW, made anew only where gradients or options changed."""
        agreed = self.stages.shared
        layout = ("algorithm", "layout", "split_sizes", "num_heads", "stack", "block_size")
        key = (
            [[id(param) for param in params] for params in active],
            [str([group.get(option) for option in (*agreed, *layout)]) for group in self.param_groups],
        )
        if self._plan is None or key != self._plan_key:
            matrices, rest = matrices_and_rest([self._takes(group) for group in self.param_groups], active)
            self._chunks = self._made(matrices, agreed)
            here, self._divided = ([c for c in self._chunks if self._divides(c) == to] for to in (False, True))
            self._plan, self._plan_key, self._meshes = (here, rest), key, meshes_of(self.param_groups)
            self._routes = None
        agree(self._meshes, self._chunks, self.param_groups)
        if self._routes is None:
            self._routes = make_routes(self._divided, self.param_groups, self._group)
        return self._plan

    def _divides(self, chunk: Chunk) -> bool:
        """Whether processes divide the work on a chunk."""
        return self._processes > 1 or chunk.mesh is not None

    def _made(self, matrices: list[list[Tensor]], agreed: tuple[str, ...]) -> list[Chunk]:
        return make_plan(self.param_groups, matrices, agreed, sharing=self._processes)

    def _gather(self, chunk: Chunk, mixes: Mixes) -> Tensor:
        """Write (1 - w) C + w M of all slots into one batch."""
        batch = torch.empty(chunk.shape, dtype=chunk.dtype, device=chunk.slots[0].param.device)
        first = 0
        for index, params in chunk.opens:
            estimates, buffers, share = self._open(index, params)
            if chunk.plain:
                fill_(batch[first : first + len(params)], estimates, buffers, share)
                first += len(params)
                continue
            for i, (param, buffer) in enumerate(zip(params, buffers, strict=True)):
                mixes[param] = (None if estimates is None else estimates[i], buffer, share)
        for slot in () if chunk.plain else chunk.slots:
            estimate, buffer, share = mixes[slot.param]
            if slot.last:
                del mixes[slot.param]
            target, group = place(batch, slot), self.param_groups[slot.group]
            buffer = matrices_of(buffer, slot, group)
            estimate = None if estimate is None else matrices_of(estimate, slot, group)
            if slot.columns is None:
                target = target.view(buffer.shape)
            else:
                buffer = buffer.reshape(target.shape)
                estimate = None if estimate is None else estimate.reshape(target.shape)
            mix_(target, estimate, buffer, share)
        return batch

    def _preconditioned(self, chunks: Sequence[Chunk], batches: Sequence[Tensor]) -> list[Tensor]:
        """Stage 3: P(G), orthogonalisation. It may use the batches as scratch."""
        options, shape = chunks[0].options, chunks[0].shape
        preset, side = options["orthogonalize"], min(shape[1:])
        dtype = compute_dtype(preset, options["ns_dtype"], chunks[0].dtype, batches[0].device, side)
        return orthogonalize_(batches, preset, options["ns_steps"], dtype)

    def _moves(self, chunk: Chunk) -> bool:
        """Whether this step changes the weights of a chunk."""
        return True

    def _beside(self, chunk: Chunk) -> int:
        """Numbers that P changes for each matrix of a chunk, beside the momentum: every process keeps all of them."""
        return 0 if self.stages.normalise is None else chunk.shape[1]

    def _kept(self, chunk: Chunk, slot: Slot) -> Tensor:
        """These numbers of a slot's matrices, (count, ...), a view of the state."""
        return self._row_moments(slot)

    def _directions(
        self, chunks: Sequence[Chunk], batches: Sequence[Tensor], kept: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Stages 3 and 4 of whole matrices, anywhere: for each chunk directions, and what is kept of them, changed."""
        found: list[tuple[Tensor, Tensor | None]] = []
        updates = self._preconditioned(chunks, batches)
        for chunk, batch, update, beside in zip(chunks, batches, updates, kept, strict=True):
            if self.stages.normalise is not None and beside is not None:
                # The batch is scratch by now.
                update = batch.copy_(update) if update.dtype != batch.dtype else update
                self.stages.normalise(update, beside, chunk.options)
            found.append((update, beside))
        return found

    def _apply(self, chunk: Chunk, update: Tensor) -> None:
        """Scale, decay and apply."""
        for index, params in chunk.opens:
            # As late as this, since a CPU has the weights in its cache then for the update.
            decay_(params, self._decay_rate(index, chunk.shape[1:]))
        if chunk.plain:
            parts = update.unbind()
            for index, params in chunk.opens:
                add_(params, parts[: len(params)], self._factor(index, chunk.shape[1:], chunk.kernel))
                parts = parts[len(params) :]
            return
        for slot in chunk.slots:
            part, factor = place(update, slot), self._factor(slot.group, slot.shape, chunk.kernel)
            target = matrices_of(slot.param, slot, self.param_groups[slot.group])
            add_([target], [part.reshape(target.shape)], factor)

    def _decay_rate(self, index: int, shape: Sequence[int]) -> Any:
        return self.param_groups[index]["lr"] * self.param_groups[index]["weight_decay"]

    def _factor(self, index: int, shape: Sequence[int], kernel: int) -> Any:
        """What an update of that shape (rows, cols) is multiplied by; a 0-D tensor where lr is one.

        `kernel` of the columns belong to one input: the entries of a convolution's kernel, 1 elsewhere.
        """
        group = self.param_groups[index]
        return -group["lr"] * scale_factor(group["scale"], *shape)

    def _row_moments(self, slot: Slot) -> Tensor:
        """The slot's second moments of rows, (count, rows, 1), a view of the state."""
        state = self.state[slot.param]
        if "second_moment" not in state:
            shapes = torch.empty(slot.param.shape, device="meta")
            total = sum(view.size(0) * view.size(1) for view in blocks(shapes, self.param_groups[slot.group]))
            state["second_moment"] = torch.zeros(total, 1, dtype=slot.param.dtype, device=local(slot.param).device)
        return state["second_moment"][slot.rows].view(-1, slot.shape[0], 1)
