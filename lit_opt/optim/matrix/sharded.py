"""The step of a matrix method in many processes: DTensors (FSDP2, HSDP, tensor parallelism), and DDP with shared work.

Gradients, momentum and the update of the weights stay where the shards are. Whole matrices exist on their owners alone,
one chunk at a time; SOAP and its kind have their state there as well (lit_opt.optim.matrix.owned). Under DDP every
process has all parts already, and gets the results of all.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_opt.averaging.shards import is_sharded, like, local, locals_of, own_part
from lit_opt.errors import RecipeError
from lit_opt.optim.matrix.batches import add_, decay_
from lit_opt.optim.matrix.boxes import cuts_of
from lit_opt.optim.matrix.exchange import Job, exchange
from lit_opt.optim.matrix.orthogonalize import compute_dtype
from lit_opt.optim.matrix.plan import Chunk
from lit_opt.optim.matrix.routes import Route, group_of

# Updates that are brought to the weights' precision together.
AT_ONCE = 8
# Estimate (None where the buffer alone counts), buffer and the buffer's share.
Mix = tuple[Any, Tensor, float]


def meshes_of(groups: Sequence[Mapping[str, Any]]) -> dict[Any, list[Tensor]]:
    """The meshes that a method's matrices are on, with their parameters; the same in all their processes.

    Example:
        >>> meshes_of([{"params": [torch.ones(2, 2)], "algorithm": "muon"}])
        {}
    """
    meshes: dict[Any, list[Tensor]] = {}
    for group in groups:
        for param in () if group.get("algorithm") == "adamw" else group["params"]:
            if param.ndim > 1 and param.numel() and is_sharded(param):
                meshes.setdefault(param.device_mesh, []).append(param)
    return meshes


def dividing_processes(optimizer: Any) -> int:
    """How many processes divide the orthogonalisation: those of `share_work`, or of the largest mesh.

    Example:
        >>> from lit_opt.optim import Muon
        >>> dividing_processes(Muon([torch.ones(2, 2)]))
        1
    """
    meshes = [mesh.size() for mesh in meshes_of(optimizer.param_groups)]
    return max([getattr(optimizer, "_processes", 1), *meshes])


def agree(meshes: Mapping[Any, Sequence[Tensor]], chunks: Sequence[Chunk], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a step in which processes of one mesh have gradients of different matrices, or different options.

    Without this they would wait for one another for ever. It is one small all-reduce for each mesh. A CPU reads the
    answer; another device stops by an assertion of its own, which the step does not wait for.

    Args:
        meshes: From `meshes_of`.
        chunks: This process's plan.
        groups: The optimizer's groups.

    Raises:
        RecipeError: On the CPU, with the parameters' names.

    Example:
        >>> agree({}, [], [])
    """
    for mesh, params in meshes.items():
        device = local(params[0]).device
        ours = [chunk for chunk in chunks if chunk.mesh == mesh]
        has = [param.grad is not None for param in params]
        said = [(chunk.shape, list(chunk.options.items()), _result_dtype(chunk, None)) for chunk in ours]
        code = zlib.crc32(repr((has, said)).encode())
        extremes = torch.tensor([code, -code], device=device)
        group = group_of(mesh)
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group=group)
        same = extremes[0] == -extremes[1]
        if device.type != "cpu":
            torch._assert_async(same, "lit_opt: processes have gradients of different matrices, or different options.")
        elif not bool(same):
            raise RecipeError([_difference(has, params, groups, group)])


def step_divided(optimizer: Any, routes: Sequence[Route]) -> None:
    """The stages on matrices that processes divide.

    Placements that `lit_opt.optim.matrix.boxes.cuts_of` does not know take a slower way: their (1 - w) C + w M is gathered in every
    process, and the results of their matrices go to every process, which cuts its own part. The work is divided all the same.

    Args:
        optimizer: A MatrixOptimizer.
        routes: The way of each chunk.

    Example:
        >>> from lit_opt.optim import Muon
        >>> step_divided(Muon([torch.ones(2, 2)]), [])
    """
    mixes: dict[Tensor, Mix] = {}
    wholes: dict[Tensor, Tensor] = {}
    exchange(
        [
            Job(
                route=route,
                groups=optimizer.param_groups,
                give=partial(_give, optimizer, route, mixes),
                compute=partial(_compute, optimizer, route),
                take=partial(_take, optimizer, route, wholes),
                dtype=_result_dtype(route.chunk, optimizer.stages.normalise),
                beside=optimizer._beside(route.chunk),
            )
            for route in routes
        ]
    )


def _give(optimizer: Any, route: Route, mixes: dict[Tensor, Mix]) -> list[Tensor | None]:
    """What this process holds of (1 - w) C + w M, for each slot of which it gives something."""
    chunk = route.chunk
    for index, params in chunk.opens:
        estimates, buffers, share = optimizer._open(index, params)
        for i, (param, buffer) in enumerate(zip(params, locals_of(buffers), strict=True)):
            mixes[param] = (None if estimates is None else estimates[i], buffer, share)
        for param in params:
            if not _is_known(param):
                _mix([param], mixes, chunk.dtype)
                mixes[param] = (None, like(mixes[param][1], param).full_tensor(), 1.0)  # type: ignore[attr-defined]
    given = {part.slot for parts in route.give for part in parts}
    _mix([slot.param for index, slot in enumerate(chunk.slots) if index in given], mixes, chunk.dtype)
    held = [mixes[slot.param][1] if index in given else None for index, slot in enumerate(chunk.slots)]
    for slot in chunk.slots:
        if slot.last:
            del mixes[slot.param]
    return held


def _mix(params: Sequence[Tensor], mixes: dict[Tensor, Mix], dtype: torch.dtype) -> None:
    """Put (1 - w) C + w M in place of both, where there are both still."""
    by_share: dict[float, dict[Tensor, None]] = {}
    for param in params:
        if mixes[param][0] is not None:
            by_share.setdefault(mixes[param][2], {})[param] = None
    for share, alike in by_share.items():
        estimates: list[Any] = [mixes[param][0] for param in alike]
        buffers = [mixes[param][1] for param in alike]
        mixed: Sequence[Tensor]
        if all(buffer.dtype == dtype for buffer in buffers):
            mixed = torch._foreach_lerp(estimates, buffers, share)
        else:
            mixed = [e.to(dtype).lerp_(b.to(dtype), share) for e, b in zip(estimates, buffers, strict=True)]
        mixes |= {param: (None, whole, 1.0) for param, whole in zip(alike, mixed, strict=True)}


def _compute(optimizer: Any, route: Route, batch: Tensor) -> tuple[Tensor, Tensor | None]:
    """The directions of this process's matrices, and what the method keeps of them beside the momentum."""
    chunk = route.chunk
    if not optimizer._beside(chunk):
        return optimizer._directions([chunk], [batch], [None])[0]
    kept = torch.cat([optimizer._kept(chunk, slot).to(chunk.dtype) for slot in chunk.slots])
    return optimizer._directions([chunk], [batch], [kept[route.ranges[route.rank]]])[0]


def _take(
    optimizer: Any, route: Route, wholes: dict[Tensor, Tensor], results: list[Tensor], moments: Tensor | None
) -> None:
    """Scale, decay and apply what came back of each matrix."""
    chunk = route.chunk
    if not optimizer._moves(chunk):
        return
    for index, params in chunk.opens:
        decay_(params, optimizer._decay_rate(index, chunk.shape[1:]))
    if moments is not None:
        own = [optimizer._kept(chunk, slot) for slot in chunk.slots]
        torch._foreach_copy_(
            own, [moments[slot.place].view_as(rows) for slot, rows in zip(chunk.slots, own, strict=True)]
        )
    alike: dict[tuple[int, tuple[int, int]], tuple[list[Tensor], list[Tensor]]] = {}
    parts = [part for owner in route.take for part in owner]
    for part, result in zip(parts, results, strict=True):
        slot = chunk.slots[part.slot]
        if _is_known(slot.param):
            target = local(slot.param)
        else:
            if slot.param not in wholes:
                wholes[slot.param] = torch.zeros(slot.param.shape, dtype=chunk.dtype, device=result.device)
            target = wholes[slot.param]
        targets, updates = alike.setdefault((slot.group, slot.shape), ([], []))
        targets.append(target if part.held is None else target[part.held])
        updates.append(result)
    for (index, shape), (targets, updates) in alike.items():
        factor = optimizer._factor(index, shape, chunk.kernel)
        for first in range(0, len(targets), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            add_(targets[some], [update.to(chunk.dtype) for update in updates[some]], factor)
    for slot in chunk.slots:
        if slot.last and slot.param in wholes:
            local(slot.param).add_(own_part(wholes.pop(slot.param), slot.param))


def _is_known(param: Any) -> bool:
    return not is_sharded(param) or cuts_of(param.device_mesh.shape, param.placements) is not None


def _result_dtype(chunk: Chunk, normalise: Any) -> torch.dtype:
    """What P returns; what is normalised is in the chunk's dtype again."""
    if normalise is not None or "orthogonalize" not in chunk.options:
        return chunk.dtype
    options, side = chunk.options, min(chunk.shape[1:])
    device = local(chunk.slots[0].param).device
    return compute_dtype(options["orthogonalize"], options["ns_dtype"], chunk.dtype, device, side)


def _difference(has: list[bool], params: Sequence[Tensor], groups: Sequence[Mapping[str, Any]], group: Any) -> str:
    """Which parameters have gradients in some processes alone; a collective."""
    everyones: list[list[bool]] = [[]] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyones, has, group=group)
    names = {
        id(param): repr(name)
        for options in groups
        for param, name in zip(options["params"], options.get("param_names") or (), strict=False)
    }
    for index, param in enumerate(params):
        ranks: dict[bool, list[int]] = {True: [], False: []}
        for rank, theirs in enumerate(everyones):
            ranks[theirs[index]].append(rank)
        if ranks[True] and ranks[False]:
            name = names.get(id(param), f"a parameter of shape {tuple(param.shape)}")
            return (
                f"grad: {name} has a gradient in processes {ranks[True]} of its mesh and none in {ranks[False]}. Its "
                f"matrices are assembled from all of them. Let every parameter take part in each process's loss (an "
                f"expert without tokens: add 0 * its output), or give it to AdamW with algorithm='adamw'."
            )
    return (
        "param_groups: orthogonalize, ns_steps, ns_dtype or the layout differ between processes, or their hardware "
        "computes in other dtypes. Give all the same options, and ns_dtype='float32' or 'bfloat16' in place of 'auto'."
    )
