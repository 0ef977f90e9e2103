"""Which matrices are orthogonalised together: buckets of one shape, cut into chunks that fit the memory limit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded
from lit_opt.optim.matrix.groups import refuse_sparse
from lit_opt.optim.matrix.layout import blocks, layout_of, shape_of
from lit_opt.optim.matrix.orthogonalize import companions, orthogonalization_flops

# Scratch of a step: 64 MB, or eight matrices where launches cost more than memory.
_SCRATCH_BYTES = 64 * 2**20
_GPU_BATCH = 8
# The share of it that chunks have which are orthogonalised in one call: they take up to eight times their own size.
_BUNDLE_SHARE = 8


@dataclass(frozen=True)
class Slot:
    """Some matrices of one parameter and their place in a chunk.

    Args:
        param: The parameter.
        group: Index of its group.
        block: Which of `layout.blocks` they are in.
        part: Their range within the block; None for all of it.
        place: Their range within the chunk.
        columns: Their columns within the chunk's matrices; None for all (a stack has several parameters side by side).
        shape: Outputs and inputs of one of them.
        rows: Their range within the parameter's rows, for statistics of rows.
        plain: The parameter is one matrix as it stands, or with its kernel's dimensions read as one.
        last: No later slot of the plan belongs to this parameter.
    """

    param: Tensor
    group: int
    block: int
    part: slice | None
    place: slice
    columns: slice | None
    shape: tuple[int, int]
    rows: slice
    plain: bool
    last: bool = False


@dataclass(frozen=True)
class Chunk:
    """Matrices of one shape that are orthogonalised in one call.

    Args:
        shape: (count, rows, cols).
        dtype: Of the matrices that go in: float32 or float64.
        options: orthogonalize, ns_steps, ns_dtype and the method's own options that they share.
        slots: What fills it.
        plain: All slots are.
        kernel: Columns of each input: the entries of a convolution's kernel, 1 elsewhere.
        opens: (group, parameters) whose first matrices are here, in the order of the slots.
        mesh: The DeviceMesh of parameters that are DTensors; None for plain ones.
        owners: Which matrices each process of the mesh owns, where that is the same in every step.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    options: Mapping[str, Any]
    slots: tuple[Slot, ...]
    plain: bool
    kernel: int = 1
    opens: tuple[tuple[int, tuple[Tensor, ...]], ...] = ()
    mesh: Any = None
    owners: tuple[slice, ...] | None = None

    @property
    def bytes(self) -> int:
        """Of the matrices that go in."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Work of its orthogonalisation; ARO's rotations and decomposition cost about as much as two iterations."""
        count, rows, cols = self.shape
        return count * orthogonalization_flops(rows, cols, self.options.get("ns_steps", 2))


@dataclass
class _Piece:
    """Matrices of one shape from one parameter, or from a stack of them side by side; `part` of a block, or all."""

    members: list[tuple[Tensor, int, int, slice | None, slice]]
    count: int
    shape: tuple[int, int]
    plain: bool
    part: slice | None = None


def make_plan(
    groups: Sequence[Mapping[str, Any]],
    active: Sequence[Sequence[Tensor]],
    shared: Sequence[str],
    *,
    sharing: int = 1,
    sharded: int = 1,
    apart: Callable[[Tensor], Any] | None = None,
    capacity: Callable[[int, int, torch.dtype, torch.device], int] | None = None,
    device: torch.device | None = None,
    owners: Callable[[Tensor, int], Sequence[slice] | None] | None = None,
) -> list[Chunk]:
    """Chunks for the parameters that have a gradient.

    Args:
        groups: The optimizer's groups.
        active: For each group its matrix parameters with a gradient; empty for groups of another algorithm.
        shared: Group options that all matrices of a chunk must agree in.
        sharing: Processes of a data-parallel run that divide the matrices: each has one of a chunk at least.
        sharded: Processes among which FSDP2 will shard them; known already where they are DTensors.
        apart: Parameters with another value of it are in other chunks.
        capacity: (rows, cols, dtype, device) -> matrices in a chunk at most; by the scratch of an orthogonalisation.
            Of a chunk with owners, those of each of them.
        device: Where the step will run, for parameters that are not there.
        owners: (parameter, block) -> which matrices of it each process owns in every step; None for no such thing.

    Raises:
        RecipeError: A sparse gradient.

    Example:
        >>> import torch
        >>> params = [torch.ones(4, 3, requires_grad=True) for _ in range(2)]
        >>> for param in params: param.grad = torch.ones(4, 3)
        >>> group = {"params": params, "orthogonalize": "jordan", "ns_steps": 5, "ns_dtype": "auto"}
        >>> [chunk.shape for chunk in make_plan([group], [params], ["orthogonalize", "ns_steps", "ns_dtype"])]
        [(2, 4, 3)]
    """
    refuse_sparse(groups, active)
    buckets: dict[tuple[Any, ...], list[_Piece]] = defaultdict(list)
    for index, (group, params) in enumerate(zip(groups, active, strict=True)):
        for members in _stacks(group, params):
            for piece in _pieces(members, group, index):
                dtype = torch.promote_types(members[0].dtype, torch.float32)
                options = [group[key] for key in shared]
                kernel = math.prod(members[0].shape[2:]) if layout_of(group, members[0]).startswith("conv") else 1
                mesh = members[0].device_mesh if is_sharded(members[0]) else None  # type: ignore[attr-defined]
                mark = apart(members[0]) if apart is not None else None
                buckets[(*_whole_shape(piece), kernel, dtype, members[0].device, mesh, mark, *options)].append(piece)
    chunks = []
    for (rows, cols, kernel, dtype, where, mesh, _, *options), pieces in buckets.items():
        if capacity is not None:
            fits = capacity(rows, cols, dtype, device or where)
        else:
            fits = max(
                sharing, _capacity(rows, cols, dtype, device or where) * (sharded if mesh is None else mesh.size())
            )
        options_of = dict(zip(shared, options, strict=True))
        for slots, own in _divided(pieces, fits, owners):
            count = max(slot.place.stop for slot in slots)
            plain = all(slot.plain for slot in slots)
            chunks.append(Chunk((count, rows, cols), dtype, options_of, slots, plain, kernel, mesh=mesh, owners=own))
    return _mark_first(_mark_last(chunks))


def bundles(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Neighbours that gain from being orthogonalised in one call, together small beside the scratch.

    Example:
        >>> options = {"orthogonalize": "jordan"}
        >>> shapes = [(2, 64, 64), (2, 64, 256), (2, 192, 64)]
        >>> [len(some) for some in bundles([Chunk(shape, torch.float32, options, (), True) for shape in shapes])]
        [1, 2]
    """
    found: list[list[Chunk]] = []
    last: Any = None
    for chunk in chunks:
        side = companions(chunk.shape) if "orthogonalize" in chunk.options else None
        alike = (side, chunk.dtype, chunk.options, chunk.mesh)
        if (
            side is None
            or alike != last
            or sum(one.bytes for one in (*found[-1], chunk)) > _SCRATCH_BYTES // _BUNDLE_SHARE
        ):
            found.append([])
        found[-1].append(chunk)
        last = alike
    return found


def _stacks(group: Mapping[str, Any], params: Sequence[Tensor]) -> list[list[Tensor]]:
    """The group's stacks as far as they have gradients, and every other parameter on its own."""
    here = {id(param) for param in params}
    stacks = [[group["params"][i] for i in stack] for stack in group.get("stack") or ()]
    stacks = [[param for param in stack if id(param) in here] for stack in stacks]
    stacked = {id(param) for stack in stacks for param in stack}
    return [stack for stack in stacks if stack] + [[param] for param in params if id(param) not in stacked]


def _pieces(members: list[Tensor], group: Mapping[str, Any], index: int) -> list[_Piece]:
    pieces, first_row = [], 0
    # Shapes alone: looking at the parts of sharded tensors would make processes talk.
    views = blocks(torch.empty(members[0].shape, device="meta"), group)
    as_it_is = layout_of(group, members[0]) in ("matrix", "conv") and len(views) == 1 and not group.get("num_heads")
    plain = len(members) == 1 and as_it_is and not is_sharded(members[0])
    for block, view in enumerate(views):
        count, rows, cols = shape_of(view)
        used = slice(first_row, first_row + count * rows)
        first_row = used.stop
        columns = [slice(k * cols, (k + 1) * cols) if len(members) > 1 else None for k in range(len(members))]
        entries = [(param, index, block, side, used) for param, side in zip(members, columns, strict=True)]
        pieces.append(_Piece(entries, count, (rows, cols), plain))
    return pieces


def _whole_shape(piece: _Piece) -> tuple[int, int]:
    return piece.shape[0], piece.shape[1] * len(piece.members)


def _capacity(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> int:
    short = min(rows, cols)
    each = (3 * rows * cols + 5 * short * short) * dtype.itemsize
    return max(1 if device.type == "cpu" else _GPU_BATCH, _SCRATCH_BYTES // each)


def _divided(
    pieces: list[_Piece], fits: int, owners: Callable[[Tensor, int], Sequence[slice] | None] | None
) -> Iterator[tuple[tuple[Slot, ...], tuple[slice, ...] | None]]:
    """The chunks of a bucket. With owners each has up to `fits` matrices of every process, the first one's first."""
    owned = [None if owners is None else owners(piece.members[0][0], piece.members[0][2]) for piece in pieces]
    ranges = [own for own in owned if own is not None]
    if not ranges:
        yield from ((slots, None) for slots in _packed(pieces, fits))
        return
    packed = [
        _packed(
            [
                replace(piece, count=own[rank].stop - own[rank].start, part=own[rank])
                for piece, own in zip(pieces, ranges, strict=True)
            ],
            fits,
        )
        for rank in range(len(ranges[0]))
    ]
    for some in zip_longest(*packed, fillvalue=()):
        slots: list[Slot] = []
        ends = [0]
        for part in some:
            places = [slice(ends[-1] + slot.place.start, ends[-1] + slot.place.stop) for slot in part]
            slots += [replace(slot, place=place) for slot, place in zip(part, places, strict=True)]
            ends.append(places[-1].stop if places else ends[-1])
        yield tuple(slots), tuple(slice(*pair) for pair in pairwise(ends))


def _packed(pieces: list[_Piece], fits: int) -> list[tuple[Slot, ...]]:
    """Fill chunks of at most `fits` matrices in order; a parameter with more is cut."""
    chunks: list[tuple[Slot, ...]] = []
    slots: list[Slot] = []
    filled = 0
    for piece in pieces:
        done, skipped = 0, piece.part.start if piece.part is not None else 0
        while done < piece.count:
            take = min(piece.count - done, fits - filled)
            whole = take == piece.count and piece.part is None
            for param, group, block, columns, used in piece.members:
                rows = piece.shape[0]
                first = used.start + (skipped + done) * rows
                slots.append(
                    Slot(
                        param=param,
                        group=group,
                        block=block,
                        part=None if whole else slice(skipped + done, skipped + done + take),
                        place=slice(filled, filled + take),
                        columns=columns,
                        shape=piece.shape,
                        rows=slice(first, first + take * rows),
                        plain=piece.plain,
                    )
                )
            done, filled = done + take, filled + take
            if filled == fits:
                chunks.append(tuple(slots))
                slots, filled = [], 0
    return [*chunks, tuple(slots)] if slots else chunks


def _mark_last(chunks: list[Chunk]) -> list[Chunk]:
    seen: set[int] = set()
    marked = []
    for chunk in reversed(chunks):
        slots = []
        for slot in reversed(chunk.slots):
            slots.append(slot if id(slot.param) in seen else _as_last(slot))
            seen.add(id(slot.param))
        marked.append(replace(chunk, slots=tuple(reversed(slots))))
    return marked[::-1]


def _as_last(slot: Slot) -> Slot:
    return replace(slot, last=True)


def _mark_first(chunks: list[Chunk]) -> list[Chunk]:
    seen: set[int] = set()
    marked = []
    for chunk in chunks:
        runs: list[tuple[int, list[Tensor]]] = []
        for slot in chunk.slots:
            if id(slot.param) in seen:
                continue
            seen.add(id(slot.param))
            if not runs or runs[-1][0] != slot.group:
                runs.append((slot.group, []))
            runs[-1][1].append(slot.param)
        marked.append(replace(chunk, opens=tuple((group, tuple(params)) for group, params in runs)))
    return marked
