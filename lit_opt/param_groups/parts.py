"""Which part of a model a parameter belongs to: projector, vision tower or language model.

A vision-language model is trained with a learning rate for each part. What is known here are the names that
transformers gives the parts of LLaVA, Qwen-VL, SmolVLM and Idefics3, PaliGemma and Gemma 3, and CLIP and SigLIP, and
those of LLaVA's and nanoVLM's own code. The names of other models are the user's to give: `parts={"projector": glob}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lit_opt.errors import nearest
from lit_opt.param_groups.snapshot import ParamInfo, ParamSnapshot, matching, such_as

# Part -> where it lies, as whole components of a dotted name. A parameter belongs to the first part in this order
# that has it: Qwen-VL's merger lies inside its vision tower, LLaVA's tower may hold a CLIP "vision_model".
KNOWN: Mapping[str, tuple[str, ...]] = {
    "projector": (
        "multi_modal_projector",  # LLaVA, PaliGemma, Gemma 3, InternVL, Mistral 3 in transformers
        "mm_projector",  # LLaVA's own code
        "visual.merger",  # Qwen2-VL, Qwen2.5-VL
        "visual.deepstack_merger_list",  # Qwen3-VL
        "connector",  # Idefics3, SmolVLM
        "modality_projection",  # inside SmolVLM's connector
        "MP",  # nanoVLM
        "projector",
        "visual_projection",  # CLIP
        "text_projection",  # CLIP
        "language_projection",  # BLIP-2
        "image_newline",  # LLaVA-NeXT
    ),
    "vision_tower": ("vision_tower", "vision_model", "vision_encoder", "visual"),
    "language_model": (
        "language_model",
        "text_model",
        "lm_head",
        # LLaVA's own code and Qwen2-VL before transformers 4.52, where the language model is the trunk.
        "model.layers",
        "model.embed_tokens",
        "model.norm",
    ),
}

REMEDY = 'parts={"projector": "*.bridge.*", "vision_tower": "*.eyes.*", "language_model": "*.decoder.*"}'


@dataclass(frozen=True, kw_only=True, slots=True)
class PartMatch:
    """Where the parts of one module lie.

    Args:
        of: Parameter name -> its part; those in no part are missing.
        notes: Sentences for the log.
        problems: Sentences for one RecipeError.

    Example:
        >>> PartMatch(of={"bridge.weight": "projector"}, notes=(), problems=()).of["bridge.weight"]
        'projector'
    """

    of: Mapping[str, str]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def known_part(name: str) -> str | None:
    """The part that a name belongs to in the models that are known here.

    Example:
        >>> known_part("model.visual.merger.mlp.0.weight"), known_part("model.visual.blocks.0.norm1.weight")
        ('projector', 'vision_tower')
        >>> known_part("logit_scale") is None
        True
    """
    dotted = f".{name}."
    return next((part for part, places in KNOWN.items() if any(f".{place}." in dotted for place in places)), None)


def match_parts(
    snapshot: ParamSnapshot, parts: Iterable[str], part_globs: Mapping[str, Sequence[str]] | None = None
) -> PartMatch:
    """Put each parameter into a part.

    A user's glob wins over what is known. Frozen parameters count as found: a stage may train the projector alone.

    Args:
        snapshot: The module's parameters.
        parts: Names of the recipe's parts; none gives an empty result.
        part_globs: Where the user says that some of them lie.

    Example:
        >>> from torch import nn
        >>> from lit_opt.param_groups.snapshot import snapshot_parameters
        >>> module = nn.ModuleDict({"vision_tower": nn.Linear(2, 2), "bridge": nn.Linear(2, 2)})
        >>> parts = match_parts(snapshot_parameters(module), ["projector", "vision_tower"], {"projector": ["bridge.*"]})
        >>> parts.of["bridge.weight"], parts.of["vision_tower.bias"]
        ('projector', 'vision_tower')
    """
    parts, part_globs = list(parts), part_globs or {}
    if not parts:
        return PartMatch(of={}, notes=(), problems=())
    infos = snapshot.parameters
    problems: list[str] = []
    of: dict[str, str] = {}
    for name, globs in part_globs.items():
        for glob in globs:
            found = matching(glob, infos)
            if not found:
                names = [n for info in infos for n in (info.name, *info.aliases)]
                problems.append(f"parts: {name} {glob!r} matches no parameter.{nearest(glob, names) or such_as(names)}")
            for info in found:
                first = of.setdefault(info.name, name)
                if first != name:
                    problems.append(
                        f"parts: {info.name!r} is matched by {first} and by {name} ({glob!r}). "
                        "Make the globs narrower, so that each parameter is in one part."
                    )
    for info in infos:
        for name in (info.name, *info.aliases):
            known = known_part(name)
            if known in parts and known not in part_globs:
                of.setdefault(info.name, known)
    if not of and not problems:
        problems.append(
            f"parts: none of {', '.join(parts)} was found in the module; its parameters are such as "
            f"{', '.join(repr(info.name) for info in infos[:3])}. Say where the parts lie, such as Recipe(..., {REMEDY})."
        )
    return PartMatch(of=of, notes=tuple(_notes(infos, parts, of)), problems=tuple(problems))


def _notes(infos: tuple[ParamInfo, ...], parts: list[str], of: Mapping[str, str]) -> list[str]:
    notes = []
    for name in parts:
        members = [info for info in infos if of.get(info.name) == name]
        if not members:
            notes.append(f"parts: no {name} was found; give parts={{{name!r}: glob}} if there is one.")
        elif not any(info.trainable for info in members):
            notes.append(f"parts: the {name} is frozen ({len(members)} tensors).")
    rest = [info.name for info in infos if info.trainable and info.name not in of]
    if rest and of:
        names = ", ".join(rest[:3]) + (" and more" if len(rest) > 3 else "")
        start = "1 trainable tensor is" if len(rest) == 1 else f"{len(rest)} trainable tensors are"
        notes.append(f"parts: {start} in no part, with lr x 1: {names}.")
    return notes
