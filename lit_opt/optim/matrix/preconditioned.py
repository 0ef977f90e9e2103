"""The engine for methods that keep statistics of both sides of a matrix: SOAP, SPlus, Shampoo.

A step goes from chunk to chunk of same-shaped matrices, as in `lit_opt.optim.matrix.engine`: gather the gradients,
update the statistics and the moments, precondition, decay and apply. What costs most, the decomposition of the
statistics, is done every few steps for all factors of one side length together.

Under DDP every process has all of the state and does all of a step but the decompositions: each factor is decomposed by
one process, and all get the same bits. Of a DTensor (FSDP2, HSDP, tensor parallelism) each matrix has one owner, the same
in every step (lit_opt.optim.matrix.owned): it alone has the state, gets the gradient and sends the update back.

State is (count, ...) for the `count` matrices of a parameter that this process owns, in float32 at least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_opt.averaging.shards import gradients_of, local
from lit_opt.optim.matrix.batches import matrices_of, place
from lit_opt.optim.matrix.engine import MatrixOptimizer
from lit_opt.optim.matrix.groups import group_label
from lit_opt.optim.matrix.layout import blocks, shape_of
from lit_opt.optim.matrix.owned import Ranges, count_of, key_of, owners_of
from lit_opt.optim.matrix.owned_state import give_out, take_in
from lit_opt.optim.matrix.plan import Chunk, Slot, make_plan
from lit_opt.optim.matrix.refresh import SCRATCH_BYTES, Exchange, Side, refresh
from lit_opt.optim.matrix.routes import group_of
from lit_opt.optim.matrix.sharded import step_divided
from lit_opt.optim.matrix.stages import Group

REFRESHES = ("spread", "together")
# Below this work (sum of the sides cubed) all decompositions in one step are no spike.
_SPREAD_FROM = 2**27
_STACKED_UP_TO = 128

Kept = dict[str, Tensor]


class PreconditionedOptimizer(MatrixOptimizer, ABC):
    """Base of Soap, SPlus and Shampoo, which have the arguments.

    A subclass says what it keeps (`kept`), how gradients become updates (`update`), and how a statistic is decomposed
    (`decompose`, `decomposed`).

    Under FSDP2, HSDP and tensor parallelism the state of each matrix is in one process. `state_dict` gives it as DTensors
    with even shards and `load_state_dict` takes such, or whole tensors: every process has to call them.

    Example:
        >>> from lit_opt.optim import Soap
        >>> Soap.stages.options[:2]
        ('betas', 'shampoo_beta')
    """

    # Whether a step uses decompositions of its own statistics; otherwise they are for the next step.
    refreshes_first: ClassVar[bool] = False
    # The number of the first step.
    first_step: ClassVar[int] = 1
    # What a step changes of the state; the rest is changed by a refresh alone.
    moving: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def kept(self, options: Group, rows: int, cols: int) -> dict[str, tuple[int, int]]:
        """Name and shape of the state of one matrix; it starts at zero, what ends on "_basis" or "_root" at one."""

    @abstractmethod
    def update(self, gradient: Tensor, kept: Kept, step: int, options: Group) -> Tensor | None:
        """(count, rows, cols) gradients -> updates; changes what is `moving` in place. None for no step at all."""

    def accumulate(self, gradient: Tensor, kept: Kept, step: int, options: Group) -> None:
        """For a method that refreshes first: the part of the step before the refresh."""

    def due(self, options: Group, step: int, offset: int) -> bool:
        """Whether a matrix gets new decompositions in its step of that number."""
        return (step + offset) % options["precondition_frequency"] == 0

    @abstractmethod
    def decomposed(self, sides: Sequence[Side], exchange: Exchange) -> None:
        """Write new decompositions of sides of one length to their views; `exchange` divides the work."""

    def problems_of(self, group: dict[str, Any], given: set[str]) -> list[str]:
        """Problems of the options that all have, in words."""
        where = group_label(group)
        problems = []
        if group["refresh"] not in REFRESHES:
            problems.append(f"{where}refresh: {group['refresh']!r} is unknown. Known: {', '.join(REFRESHES)}.")
        for key in ("precondition_frequency", "max_preconditioner_dim"):
            value = group[key]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                problems.append(f"{where}{key}: {value!r} is not a whole number above 0.")
        return problems

    def state_dict(self) -> dict[str, Any]:
        """As in torch; what one process owns is a DTensor, and to make that is a collective."""
        saved = super().state_dict()
        give_out(self, saved)
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the state keeps its precision; for DTensors a collective."""
        super().load_state_dict(state_dict)
        take_in(self, state_dict)

    def _divides(self, chunk: Chunk) -> bool:
        return chunk.owners is not None

    def _made(self, matrices: list[list[Tensor]], agreed: tuple[str, ...]) -> list[Chunk]:
        """Parameters that missed steps are in chunks of their own, so that all of a chunk are at the same step."""
        self._offsets = self._offsets_of_all()
        self._known: dict[int, tuple[list[Tensor], list[Kept]]] = {}
        self._owners = owners_of(self)
        chunks = make_plan(
            self.param_groups, matrices, agreed, apart=self._step_of, capacity=capacity, owners=self._owners_of_block
        )
        self._own = {id(chunk): self._own_part(chunk) for chunk in chunks if chunk.owners is not None}
        return chunks

    def _owners_of_block(self, param: Tensor, block: int) -> Ranges | None:
        return self._owners[id(param)][block] if id(param) in self._owners else None

    def _own_part(self, chunk: Chunk) -> Chunk:
        """This process's matrices of a chunk, with parts of what it has of their state."""
        assert chunk.owners is not None
        rank = torch.distributed.get_rank(group_of(chunk.mesh))
        own = chunk.owners[rank]
        slots = []
        for slot in chunk.slots:
            if own.start <= slot.place.start < own.stop:
                first = self._owners[id(slot.param)][slot.block][rank].start
                part = slot.part and slice(slot.part.start - first, slot.part.stop - first)
                place = slice(slot.place.start - own.start, slot.place.stop - own.start)
                slots.append(replace(slot, part=part, place=place))
        return replace(chunk, shape=(count_of(own), *chunk.shape[1:]), slots=tuple(slots))

    def _step_of(self, param: Tensor) -> int:
        state = self.state.get(param, {})
        return int(state["step"]) if "step" in state else -1

    def _offsets_of_all(self) -> dict[int, int]:
        """Steps by which a parameter's refresh is earlier than its step count says, by the work of those before it."""
        work, total, first = [], 0, {}
        for group in self.param_groups:
            for param in group["params"]:
                if group["algorithm"] != self.name or param.ndim < 2 or not param.numel():
                    continue
                shapes = [shape_of(view) for view in blocks(torch.empty(param.shape, device="meta"), group)]
                first[id(param)] = (total, group)
                total += sum(count * (rows**3 + cols**3) for count, rows, cols in shapes)
                work.append(total)
        return {
            key: group["precondition_frequency"] * before // total
            if group["refresh"] == "spread" and total > _SPREAD_FROM
            else 0
            for key, (before, group) in first.items()
        }

    def _step_matrices(self, chunks: list[Chunk]) -> None:
        """Advance the step counts, then all chunks, with what is due before or after."""
        for chunk in (*chunks, *self._divided):
            self._advance(chunk)
        step_divided(self, self._routes or ())
        due = self._due(chunks)
        if self.refreshes_first and due:
            for chunk in chunks:
                self._on_stack(chunk, self._gradients(chunk), self.accumulate)
            self._refresh(due, self._processes)
        before = (self.accumulate,) if self.refreshes_first and not due else ()
        for chunk in chunks:
            update = self._on_stack(chunk, self._gradients(chunk), *before, self.update)
            if update is not None:
                self._apply(chunk, update)
        if not self.refreshes_first:
            self._refresh(due, self._processes)
            self._refresh(self._due(self._own.values()), 1)

    def _due(self, chunks: Iterable[Chunk]) -> list[tuple[Chunk, Slot, int]]:
        """The slots that get new decompositions in this step, with their step."""
        steps = [(chunk, slot, self._step_of(slot.param)) for chunk in chunks for slot in chunk.slots]
        return [
            (chunk, slot, step)
            for chunk, slot, step in steps
            if self.due(chunk.options, step, self._offsets[id(slot.param)])
        ]

    def _open(self, index: int, params: Sequence[Tensor]) -> tuple[list[Tensor] | None, list[Tensor], float]:
        """What goes to the owners of DTensors: gradients as they are."""
        return None, gradients_of(params), 1.0

    def _directions(
        self, chunks: Sequence[Chunk], batches: Sequence[Tensor], kept: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Updates of this process's matrices of chunks, of whose gradients the batches are."""
        return [(self._updated(chunk, batch), None) for chunk, batch in zip(chunks, batches, strict=True)]

    def _updated(self, chunk: Chunk, batch: Tensor) -> Tensor:
        own = self._own[id(chunk)]
        due = self._due([own]) if self.refreshes_first else []
        before = (self.accumulate,) if self.refreshes_first else ()
        if due:
            self._on_stack(own, batch, self.accumulate)
            self._refresh(due, 1)
            before = ()
        update = self._on_stack(own, batch, *before, self.update)
        return batch if update is None else update

    def _moves(self, chunk: Chunk) -> bool:
        return self._step_of(chunk.slots[0].param) > 0

    def _advance(self, chunk: Chunk) -> None:
        """Count the step of the parameters that open here, and make the state of new ones."""
        counts = []
        for index, params in chunk.opens:
            for param in params:
                state = self.state[param]
                if "step" in state:
                    counts.append(state["step"])
                else:
                    self._make_state(param, state, self.param_groups[index], chunk)
        if counts:
            torch._foreach_add_(counts, 1)

    def _make_state(self, param: Tensor, state: dict[str, Any], group: Group, chunk: Chunk) -> None:
        state["step"] = torch.tensor(float(self.first_step))
        # Shapes alone: looking at the parts of sharded tensors would make processes talk.
        views = blocks(torch.empty(param.shape, device="meta"), group)
        for block, (count, rows, cols) in enumerate(map(shape_of, views)):
            if chunk.owners is not None:
                own = self._owners[id(param)][block][torch.distributed.get_rank(group_of(chunk.mesh))]
                count = count_of(own)
            for key, shape in self.kept(group, rows, cols).items():
                made = torch.zeros(count, *shape, dtype=chunk.dtype, device=local(param).device)
                if key.endswith(("_basis", "_root")):
                    made.diagonal(dim1=-2, dim2=-1).fill_(1.0)
                state[key_of(key, block)] = made

    def _views(self, slot: Slot, options: Group) -> Kept:
        state = self.state[slot.param]
        part = slot.part if slot.part is not None else slice(None)
        return {key: state[key_of(key, slot.block)][part] for key in self.kept(options, *slot.shape)}

    def _views_of_all(self, chunk: Chunk) -> list[Kept]:
        """`_views` of each slot, made anew where somebody has put other tensors into the state."""
        held = [self.state[slot.param][key_of("exp_avg", slot.block)] for slot in chunk.slots]
        found = self._known.get(id(chunk))
        if found is None or any(a is not b for a, b in zip(held, found[0], strict=True)):
            found = self._known[id(chunk)] = (held, [self._views(slot, chunk.options) for slot in chunk.slots])
        return found[1]

    def _on_stack(self, chunk: Chunk, gradient: Tensor, *stages: Callable[[Tensor, Kept, int, Group], Any]) -> Any:
        """Run stages on the chunk's states as batches, and write back what they changed; the last one's result."""
        views, step = self._views_of_all(chunk), self._step_of(chunk.slots[0].param)
        kept = views[0] if len(views) == 1 else {key: torch.cat([view[key] for view in views]) for key in views[0]}
        result = [stage(gradient, kept, step, chunk.options) for stage in stages][-1]
        if len(views) == 1:
            return result
        for key in self.moving:
            if key in kept:
                parts = [kept[key][slot.place] for slot in chunk.slots]
                torch._foreach_copy_([view[key] for view in views], parts)
        return result

    def _gradients(self, chunk: Chunk) -> Tensor:
        """(count, rows, cols), not to be written to."""
        first = chunk.slots[0]
        if len(chunk.slots) == 1 and first.plain:
            assert first.param.grad is not None
            return first.param.grad.flatten(1).to(chunk.dtype).unsqueeze(0)
        if chunk.plain:
            grads: list[Any] = [slot.param.grad for slot in chunk.slots]
            return torch.stack([grad if grad.ndim == 2 else grad.flatten(1) for grad in grads]).to(chunk.dtype)
        batch = torch.empty(chunk.shape, dtype=chunk.dtype, device=first.param.device)
        for slot in chunk.slots:
            assert slot.param.grad is not None
            part = matrices_of(slot.param.grad, slot, self.param_groups[slot.group])
            place(batch, slot).view(part.shape).copy_(part)
        return batch

    def _factor(self, index: int, shape: Sequence[int], kernel: int) -> Any:
        return -self.param_groups[index]["lr"]

    def _refresh(self, due: list[tuple[Chunk, Slot, int]], processes: int) -> None:
        """New decompositions of all sides that are due, those of one length together; so many processes divide them."""
        found = [
            Side(name, views, chunk.options, step)
            for chunk, slot, step in due
            for views in (self._views(slot, chunk.options),)
            for name in ("left", "right")
            if f"{name}_factor" in views
        ]
        refresh(found, self.decomposed, processes, self._group)


def capacity(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> int:
    """Matrices of a chunk: a CPU goes one by one where they are large enough to keep it busy.

    Example:
        >>> capacity(768, 768, torch.float32, torch.device("cpu")), capacity(64, 64, torch.float32, torch.device("cpu"))
        (1, 409)
    """
    if device.type == "cpu" and max(rows, cols) > _STACKED_UP_TO:
        return 1
    each = (6 * rows * cols + 2 * rows * rows + 2 * cols * cols) * dtype.itemsize
    return max(1, SCRATCH_BYTES // each)
