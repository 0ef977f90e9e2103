"""Run all checks on the evidence of one run: what is found, and what could not be judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_opt.errors import RecipeError, nearest
from lit_opt.preflight.checks import averaging, batch, clipping, decay, hints, matrix, membership, rates, sam, schedule
from lit_opt.preflight.evidence import Evidence
from lit_opt.preflight.finding import LEVELS, Check, Finding

CHECKS: tuple[Check, ...] = (
    *membership.CHECKS,
    *decay.CHECKS,
    *schedule.CHECKS,
    *rates.CHECKS,
    *batch.CHECKS,
    *matrix.CHECKS,
    *clipping.CHECKS,
    *sam.CHECKS,
    *averaging.CHECKS,
    *hints.CHECKS,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Unjudged:
    """Checks that stayed silent for want of knowledge.

    Args:
        reason: What is not known, in a clause.
        checks: What they look for.
        remedy: What would tell; "" where nothing would.

    Example:
        >>> Unjudged(reason="the horizon is not known", checks=("a long warmup",)).remedy
        ''
    """

    reason: str
    checks: tuple[str, ...]
    remedy: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The outcome of all checks.

    Args:
        findings: Errors first.
        unjudged: What could not be judged, and why.
        judged: How many checks had enough to go on.
        setting: "" where it is not known.
        silenced: Findings that `ignore` took out of `findings`.
        ignored: The ids that were to be ignored.

    Example:
        >>> Report(findings=(), unjudged=(), judged=3).worst
        ''
    """

    findings: tuple[Finding, ...]
    unjudged: tuple[Unjudged, ...]
    judged: int
    setting: str = ""
    silenced: tuple[Finding, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def worst(self) -> str:
        """The highest level found, "" for none."""
        return self.findings[0].level if self.findings else ""


def check(evidence: Evidence) -> list[Finding]:
    """Everything that is found, errors first.

    Args:
        evidence: From `lit_opt.preflight.collect.collect`.

    Example:
        >>> import torch
        >>> from lit_opt.preflight.collect import collect
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> adam = torch.optim.Adam(module[0].parameters(), lr=1e-3, weight_decay=0.1)
        >>> [(finding.id, finding.level) for finding in check(collect(module, [adam]))]
        [('parameters-missing', 'warning'), ('adam-l2', 'warning'), ('decay-on-norms', 'note')]
    """
    return list(judge(evidence).findings)


def ignorable(ids: Sequence[str]) -> tuple[str, ...]:
    """The ids of checks that are to be ignored, each once.

    Args:
        ids: As a user gave them.

    Raises:
        RecipeError: No check has such an id; a string instead of a list of them.

    Example:
        >>> ignorable(["adam-l2", "beta2-llm", "adam-l2"])
        ('adam-l2', 'beta2-llm')
    """
    if isinstance(ids, str):
        raise RecipeError([f"ignore: {ids!r} is a string. Give a list, ignore=[{ids!r}]."])
    known = sorted(one.id for one in CHECKS)
    unknown = [one for one in ids if one not in known]
    if unknown:
        raise RecipeError(
            [
                f"ignore: no check has the id {one!r}.{nearest(one, known)} Every finding ends with its id. "
                f"Known: {', '.join(known)}."
                for one in unknown
            ]
        )
    return tuple(dict.fromkeys(ids))


def judge(evidence: Evidence, ignore: Sequence[str] = ()) -> Report:
    """Run all checks and say which could not speak.

    Args:
        evidence: From `lit_opt.preflight.collect.collect`.
        ignore: Ids of checks whose findings are kept apart, in `Report.silenced`.

    Raises:
        RecipeError: `ignore` has an id that no check has.

    Example:
        >>> import torch
        >>> from lit_opt.preflight.collect import collect
        >>> module = torch.nn.Linear(4, 4)
        >>> report = judge(collect(module, [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)]))
        >>> report.findings, report.unjudged[0].reason
        ((), 'the setting is not known')
    """
    ignored = ignorable(ignore)
    findings: list[Finding] = []
    silent: dict[str, list[str]] = {}
    judged = 0
    for one in CHECKS:
        if one.settings and evidence.setting is not None and evidence.setting not in one.settings:
            continue
        needs = ("setting", *one.needs) if one.settings else one.needs
        lacking = next((need for need in needs if need in evidence.missing), None)
        if lacking is not None:
            silent.setdefault(evidence.missing[lacking], []).append(one.looks_for)
            continue
        try:
            findings += one.find(evidence)
            judged += 1
        except Exception as error:  # a user's objects can be anything; a check must not stop their training
            silent.setdefault(f"the check failed ({type(error).__name__}: {error})", []).append(one.looks_for)
    order = list(LEVELS)
    findings.sort(key=lambda finding: order.index(finding.level))
    return Report(
        findings=tuple(finding for finding in findings if finding.id not in ignored),
        silenced=tuple(finding for finding in findings if finding.id in ignored),
        ignored=ignored,
        unjudged=tuple(
            Unjudged(reason=reason, checks=tuple(names), remedy=_remedy(reason, evidence))
            for reason, names in sorted(silent.items(), key=lambda pair: pair[0] != evidence.missing.get("setting"))
        ),
        judged=judged,
        setting=evidence.key,
    )


def _remedy(reason: str, evidence: Evidence) -> str:
    if reason == evidence.missing.get("setting"):
        return f"say which it is: setting= or --setting {_guess(evidence) or 'llm, vit, cnn, diffusion, ...'}"
    if reason == evidence.missing.get("horizon"):
        return "Trainer(max_steps=...), or a loader that has a length"
    return ""


def _guess(evidence: Evidence) -> str:
    """A setting that the module's class speaks for; only said, never used."""
    kinds = {type(module).__name__ for module in evidence.module.modules()}
    kinds |= {type(value).__name__ for value in vars(evidence.module).values()}
    if any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        return "llm (or llm/finetune)"
    if any("UNet2D" in kind or "DiTTransformer" in kind or kind.endswith(("DDPMScheduler", "DiT")) for kind in kinds):
        return "diffusion (or diffusion/finetune)"
    if kinds & {"VisionTransformer", "ViTModel", "SwinTransformer"}:
        return "vit (or vit/finetune)"
    return "cnn" if kinds & {"ResNet", "ConvNeXt", "EfficientNet", "MobileNetV3", "VGG"} else ""
