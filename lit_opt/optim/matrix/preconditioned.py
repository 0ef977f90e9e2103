"""The engine for methods that keep statistics of both sides of a matrix: SOAP, SPlus, Shampoo.

A step goes from chunk to chunk of same-shaped matrices, as in `lit_opt.optim.matrix.engine`: gather the gradients,
update the statistics and the moments, precondition, decay and apply. What costs most, the decomposition of the
statistics, is done every few steps for all factors of one side length together, and processes of a data-parallel run
divide it: each factor is decomposed by one of them, and all get the same bits.

State is (count, ...) for the `count` matrices of a parameter, in float32 at least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded, local, own_part
from lit_opt.optim.matrix.batches import decay_, matrices_of, place
from lit_opt.optim.matrix.engine import MatrixOptimizer
from lit_opt.optim.matrix.groups import group_label
from lit_opt.optim.matrix.layout import blocks, shape_of
from lit_opt.optim.matrix.plan import Chunk, Slot, make_plan
from lit_opt.optim.matrix.refresh import SCRATCH_BYTES, Exchange, Side, exchange_of, packs_of
from lit_opt.optim.matrix.sharing import divided
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

    Under FSDP2 gradients are gathered whole, and every process keeps the whole state of the matrices: their memory is
    not divided.

    Example:
        >>> from lit_opt.optim import Soap
        >>> Soap.stages.options[:2]
        ('betas', 'shampoo_beta')
    """

    whole_everywhere: ClassVar[bool] = True
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the state keeps its precision: torch casts it to that of the weights."""
        super().load_state_dict(state_dict)
        params = [param for group in self.param_groups for param in group["params"]]
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for param, index in zip(params, saved, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                own = self.state[param][key]
                if isinstance(own, Tensor) and own.dtype != value.dtype:
                    self.state[param][key] = value.detach().to(own.device, copy=True)

    def _made(self, matrices: list[list[Tensor]], agreed: tuple[str, ...]) -> list[Chunk]:
        """Parameters that missed steps are in chunks of their own, so that all of a chunk are at the same step."""
        self._offsets = self._offsets_of_all()
        self._known: dict[int, tuple[list[Tensor], list[Kept]]] = {}
        return make_plan(self.param_groups, matrices, agreed, apart=self._step_of, capacity=capacity)

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
        for chunk in chunks:
            self._advance(chunk)
        steps = [self._step_of(chunk.slots[0].param) for chunk in chunks]
        due = [
            (chunk, slot, step)
            for chunk, step in zip(chunks, steps, strict=True)
            for slot in chunk.slots
            if self.due(chunk.options, step, self._offsets[id(slot.param)])
        ]
        if self.refreshes_first and due:
            for chunk, step in zip(chunks, steps, strict=True):
                self._on_stack(chunk, step, self.accumulate)
            self._refresh(due)
        updates: dict[Tensor, Tensor] = {}
        for chunk, step in zip(chunks, steps, strict=True):
            before = (self.accumulate,) if self.refreshes_first and not due else ()
            update = self._on_stack(chunk, step, *before, self.update)
            if update is not None:
                self._apply_everywhere(chunk, update, updates)
        if not self.refreshes_first and due:
            self._refresh(due)

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
            for key, shape in self.kept(group, rows, cols).items():
                made = torch.zeros(count, *shape, dtype=chunk.dtype, device=_device(param))
                if key.endswith(("_basis", "_root")):
                    made.diagonal(dim1=-2, dim2=-1).fill_(1.0)
                state[_key(key, block)] = made

    def _views(self, slot: Slot, options: Group) -> Kept:
        state = self.state[slot.param]
        part = slot.part if slot.part is not None else slice(None)
        return {key: state[_key(key, slot.block)][part] for key in self.kept(options, *slot.shape)}

    def _views_of_all(self, chunk: Chunk) -> list[Kept]:
        """`_views` of each slot, made anew where somebody has put other tensors into the state."""
        held = [self.state[slot.param][_key("exp_avg", slot.block)] for slot in chunk.slots]
        found = self._known.get(id(chunk))
        if found is None or any(a is not b for a, b in zip(held, found[0], strict=True)):
            found = self._known[id(chunk)] = (held, [self._views(slot, chunk.options) for slot in chunk.slots])
        return found[1]

    def _on_stack(self, chunk: Chunk, step: int, *stages: Callable[[Tensor, Kept, int, Group], Any]) -> Any:
        """Run stages on the chunk's states as batches, and write back what they changed; the last one's result."""
        views = self._views_of_all(chunk)
        kept = views[0] if len(views) == 1 else {key: torch.cat([view[key] for view in views]) for key in views[0]}
        gradient = self._gradients(chunk)
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
        batch = torch.empty(chunk.shape, dtype=chunk.dtype, device=_device(first.param))
        whole: dict[Tensor, Tensor] = {}
        for slot in chunk.slots:
            if slot.param not in whole:
                grad: Any = slot.param.grad
                whole[slot.param] = grad.full_tensor() if is_sharded(grad) else grad
            part = matrices_of(whole[slot.param], slot, self.param_groups[slot.group])
            target = place(batch, slot)
            target.view(part.shape).copy_(part)
            if slot.last:
                del whole[slot.param]
        return batch

    def _apply_everywhere(self, chunk: Chunk, update: Tensor, wholes: dict[Tensor, Tensor]) -> None:
        """Decay and apply what every process has; of a DTensor each takes its own part."""
        if chunk.mesh is None:
            self._apply(chunk, update)
            return
        for index, params in chunk.opens:
            decay_(params, self._decay_rate(index, chunk.shape[1:]))
        for slot in chunk.slots:
            if slot.param not in wholes:
                wholes[slot.param] = torch.empty(slot.param.shape, dtype=chunk.dtype, device=update.device)
            target = matrices_of(wholes[slot.param], slot, self.param_groups[slot.group])
            factor = self._factor(slot.group, slot.shape, chunk.kernel)
            target.copy_(place(update, slot).reshape(target.shape)).mul_(factor)
            if slot.last:
                local(slot.param).add_(own_part(wholes.pop(slot.param), slot.param))

    def _factor(self, index: int, shape: Sequence[int], kernel: int) -> Any:
        return -self.param_groups[index]["lr"]

    def _refresh(self, due: list[tuple[Chunk, Slot, int]]) -> None:
        """New decompositions of all sides that are due, those of one length together."""
        buckets: dict[tuple[Any, ...], list[Side]] = defaultdict(list)
        for chunk, slot, step in due:
            views = self._views(slot, chunk.options)
            for name in ("left", "right"):
                if f"{name}_factor" in views:
                    factor = views[f"{name}_factor"]
                    key = (factor.size(-1), factor.dtype, factor.device, *chunk.options.values(), step)
                    buckets[key].append(Side(name, views, chunk.options, step))
        packs = [pack for (side, *_), sides in buckets.items() for pack in packs_of(sides, side, self._processes)]
        counts = [sum(side.views[f"{side.name}_factor"].size(0) for side in pack) for pack in packs]
        work = [pack[0].views[f"{pack[0].name}_factor"].size(-1) ** 3 for pack in packs]
        parts = divided(counts, work, self._processes) if self._processes > 1 else [[] for _ in packs]
        for pack, part in zip(packs, parts, strict=True):
            self.decomposed(pack, exchange_of(part, self._group))


def together(tensors: Sequence[Tensor]) -> Tensor:
    """One batch of several, and one as it is.

    Example:
        >>> import torch
        >>> together([torch.ones(1, 2), torch.zeros(1, 2)])
        tensor([[1., 1.],
                [0., 0.]])
    """
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


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


def _key(name: str, block: int) -> str:
    """The key of a state; blocks of a parameter after its first have a number."""
    return f"{name}_{block}" if block else name


def _device(param: Any) -> torch.device:
    return param.to_local().device if is_sharded(param) else param.device
