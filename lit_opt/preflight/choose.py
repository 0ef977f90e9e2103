"""Which setting is this? From the structure of a module and the facts of its run to a recipe, with reasons.

The rules read types, shapes and ties (`lit_opt.preflight.structure`); where a name helps, the reason says so. What no
structure tells is said as well: whether weights are pretrained on the meta device, whether masked or causal text is
meant, what a loss does. How often the answer is right was measured: `benchmarks/results/choose.md`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_opt.preflight.choice import Choice, refine, unsure
from lit_opt.preflight.structure import Structure, read_structure
from lit_opt.recipes import get_recipe
from lit_opt.resolve import RunFacts

_CONTRASTIVE = {
    "lr": 5e-4,
    "betas": (0.9, 0.98),
    "weight_decay": 0.2,
    "parts": {name: {"lr_scale": 1.0} for name in ("projector", "language_model", "vision_tower")},
}


def choose(module: nn.Module, facts: RunFacts | None = None) -> Choice:
    """Propose a recipe for a module.

    Args:
        module: Whole and unsharded; the meta device will do.
        facts: What is known of the run; the batch decides about the large_batch recipes.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
        >>> choice = choose(net)
        >>> choice.recipe, choice.confidence
        ('cnn', 'high')
        >>> choose(nn.Linear(3, 1)).confidence
        'unsure'
    """
    seen = read_structure(module)
    rules: tuple[Callable[[Structure], Choice | None], ...] = (_denoiser, _sound, _images_and_text, _text, _images)
    found = next((choice for rule in rules if (choice := rule(seen)) is not None), None) or unsure(
        "Nothing in it is of a setting that is known here: no image comes in, no text with a head for its tokens, and nothing "
        "is denoised."
    )
    if not found.recipe:
        return found
    return refine(found, seen, facts or RunFacts())


def _denoiser(s: Structure) -> Choice | None:
    time = [f"It has a noise schedule (buffer {s.noise_schedule[0]})."] if s.noise_schedule else []
    if s.conditioned >= 2:
        time.append(f"{s.conditioned} blocks of convolutions hold one linear layer each, as for a time.")
    structural = bool(time)
    time += [f"By name: {s.named[0]}."] if s.named else []
    if not time or s.text_trained:
        return None
    if not s.returns_input:
        return (
            None
            if not structural or not s.named
            else _diffusion("low", *time, "But no output of the input's size was found.")
        )
    same = f"What comes out has the size of what goes in, or twice it: {s.returns_input}."
    return _diffusion("high" if structural or len(s.named) > 1 else "medium", same, *time)


def _diffusion(confidence: str, *reasons: str) -> Choice:
    return Choice(
        recipe="diffusion",
        confidence=confidence,
        reasons=reasons,
        alternatives=(("diffusion/finetune", "if the weights are pretrained"),),
    )


def _sound(s: Structure) -> Choice | None:
    if not s.sound:
        return None
    return unsure(
        f"It begins with a convolution in one dimension ({s.sound}): sound or another signal, and no recipe here is for them.",
        alternatives=(("llm", "if it is a speech model whose published recipe is AdamW with warmup and cosine"),),
    )


def _images_and_text(s: Structure) -> Choice | None:
    if not s.image or not s.vocabulary:
        return None
    if s.text_head:
        return Choice(
            recipe="vlm",
            confidence="high" if s.generates or s.attention > 1 else "medium",
            reasons=(
                f"Images come in ({s.image}) and text goes out: a token embedding of {s.vocabulary:,} rows with {_tied(s)}.",
            ),
            alternatives=(("llm/finetune", "if the vision tower and the projector are frozen"),),
        )
    if s.vocabulary < 100 or (s.heads and not s.scalars) or not s.attention:
        return None
    scale = "a free-standing number, such as a temperature, and " if s.scalars else ""
    return Choice(
        recipe="vlm",
        confidence="medium" if s.scalars else "low",
        reasons=(
            f"Images come in ({s.image}) and text as well ({s.vocabulary:,} tokens), with {scale}no head for tokens: two "
            "encoders that are compared, as CLIP's.",
            "The values are open_clip's: lr 5e-4, betas 0.9 and 0.98, decay 0.2, one rate for all parts "
            "(src/open_clip_train/params.py).",
        ),
        overrides=_CONTRASTIVE,
    )


def _text(s: Structure) -> Choice | None:
    if not s.vocabulary or s.image:
        return None
    if s.text_head:
        layers = f"{s.attention} attention layers" if s.attention else "no attention (recurrent or state-space)"
        reasons = [f"A token embedding of {s.vocabulary:,} rows with {_tied(s)}, and {layers}."]
        if s.generates:
            reasons.append("The model says that it generates text (can_generate).")
        else:
            reasons.append("Whether its text is masked or causal cannot be told; the recipe is the same.")
        sure = s.attention > 0 or s.generates
        return Choice(
            recipe="llm",
            confidence=("high" if s.generates else "medium") if sure and s.blocks else "low",
            reasons=tuple(reasons),
            alternatives=(
                ("llm/muon", get_recipe("llm").deviate),
                ("llm/finetune", "if the weights are pretrained"),
            ),
        )
    if s.attention and s.vocabulary >= 100 and s.heads:
        return Choice(
            recipe="llm/finetune",
            confidence="low",
            reasons=(
                f"An encoder of text ({s.vocabulary:,} tokens, {s.attention} attention layers) with {_outputs(s)}: a classifier "
                "of text, which is nearly always fine-tuned.",
            ),
            alternatives=(("llm", "if it is trained from scratch"),),
        )
    return None


def _images(s: Structure) -> Choice | None:
    if not s.image:
        return None
    if s.upsamples or s.redraws:
        why = f"{s.upsamples} transposed convolutions" if s.upsamples else s.redraws
        return unsure(
            f"Images come in ({s.image}) and something like images goes out ({why}), with no sign of a diffusion time: an "
            "autoencoder, a segmentation or a restoration, for which there is no recipe here.",
            alternatives=_by_body(s),
        )
    outputs = s.heads or s.dense_heads
    if len(set(outputs.values())) > 1:
        several = ", ".join(f"{path} ({n})" for path, n in list(outputs.items())[:4])
        return unsure(
            f"Images come in ({s.image}) and several different things go out: {several}. Detection or several tasks, for "
            "which there is no recipe here.",
            alternatives=_by_body(s),
        )
    body, confidence, reason = _body(s)
    stem = f"Images come in ({s.image}{', as patches' if s.patches else ''}{', as volumes' if s.volumes else ''})"
    if not outputs:
        if body == "vit" and s.patches:
            return _classifier("vit", "low", f"{stem}.", reason, "There is no head: a backbone, or self-supervised.")
        return unsure(f"{stem}, and no head for classes was found.", reason, alternatives=_by_body(s))
    if not s.heads:
        confidence = "low"
        reason += f" The head is a convolution ({', '.join(s.dense_heads)}): classes of images, or of each pixel."
    elif s.volumes and confidence == "high":
        confidence = "medium"
    return _classifier(body, confidence, f"{stem} and classes go out: {_outputs(s)}.", reason)


def _classifier(body: str, confidence: str, *reasons: str) -> Choice:
    others: dict[str, tuple[tuple[str, str], ...]] = {
        "vit": (("vit/finetune", "if the weights are pretrained"), ("vit/muon", get_recipe("vit").deviate)),
        "cnn": (("vit", "AdamW, for faster early convergence or a transformer-heavy stack"),),
    }
    return Choice(recipe=body, confidence=confidence, reasons=reasons, alternatives=others[body])


def _body(s: Structure) -> tuple[str, str, str]:
    """Recipe, confidence and reason from what is between the image and the head."""
    few = s.attention_share < 0.1 and s.kernels > 0.5 and s.batch_norms > s.layer_norms
    if s.attention and not few:
        share = f"{s.attention} attention layers with {s.attention_share:.0%} of the weights"
        sure = s.kernels < 0.3 and s.batch_norms <= s.layer_norms
        mixed = "" if sure else f", beside convolutions with {s.kernels:.0%}: a hybrid, trained as a transformer"
        return "vit", "high" if sure else "medium", f"{share}{mixed}."
    if s.patches or (s.layer_norms > s.batch_norms and not s.batch_norms):
        why = "patches" if s.patches else f"{s.layer_norms} layer norms and no batch norm"
        return (
            "vit",
            "medium",
            f"No attention, but {why}: its relatives (ConvNeXt, MLP-Mixer, ResMLP, ConvMixer) are published with AdamW.",
        )
    if s.batch_norms and (s.kernels > 0.2 or not s.layer_norms):
        return (
            "cnn",
            "high" if not s.attention else "medium",
            f"Convolutions with {s.kernels:.0%} of the weights, {s.batch_norms} batch norms.",
        )
    return (
        "cnn",
        "medium",
        f"Convolutions with {s.kernels:.0%} of the weights, and no norms: an early or norm-free CNN.",
    )


def _by_body(s: Structure) -> tuple[tuple[str, str], ...]:
    body, _, reason = _body(s)
    return ((body, f"by its body alone: {reason[:1].lower()}{reason[1:].rstrip('.')}"),)


def _tied(s: Structure) -> str:
    return "a head of as many outputs" + (", tied to it" if s.text_head == "tied" else "")


def _outputs(s: Structure) -> str:
    heads = s.heads or s.dense_heads
    return ", ".join(f"{path} with {n:,} outputs" for path, n in list(heads.items())[:2])
