"""Published setups of language and vision-language models, as their repositories build them. All are correct.

Architectures are those of tests/param_groups/architectures.py, cut to two layers and on the meta device: names, owners and
dimensions are what the checks look at. Rates, decays, exclusions, schedules and lengths are the published ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.param_groups.architectures import build
from tests.param_groups.deciders import hf_trainer_decays
from tests.preflight.setups import Report, by_dimension, cosine, run, schedule, stepped

Build = Callable[[], Report]
BETAS = (0.9, 0.95)


def everything(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """One group."""
    return [{"params": [p for p in module.parameters() if p.requires_grad], "weight_decay": decay}]


def without(module: nn.Module, decay: float, excluded: Callable[[str, Any], bool]) -> list[dict[str, Any]]:
    """Two groups by a rule on name and tensor."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    return [
        {"params": [p for n, p in named if not excluded(n, p)], "weight_decay": decay},
        {"params": [p for n, p in named if excluded(n, p)], "weight_decay": 0.0},
    ]


def hf_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The Hugging Face Trainer's two groups."""
    decayed = hf_trainer_decays(module)
    return without(module, decay, lambda n, _: n not in decayed)


def warm_linear(total: int, warmup: int, final: float = 0.0) -> Callable[[int], float]:
    """Linear up, linear down."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(final, 1 - (1 - final) * (step - warmup) / (total - warmup))

    return factor


def stable(total: int, warmup: int, cooldown: float) -> Callable[[int], float]:
    """Warmup, constant, linear to 0 over the last part."""
    start = total * (1 - cooldown)
    return lambda s: (s + 1) / (warmup + 1) if s < warmup else min(1.0, max(0.0, (total - s) / (total - start)))


def _adamw(
    name: str,
    groups: Callable[[nn.Module], list[dict[str, Any]]],
    lr: float,
    factor: Callable[[int], float],
    total: int,
    setting: str | None,
    *,
    betas: tuple[float, float] = BETAS,
    clip: float = 1.0,
    batch: int = 512,
    precision: str = "bf16-mixed",
    module: nn.Module | None = None,
    **options: Any,
) -> Report:
    module = module or build(name)
    optimizer = torch.optim.AdamW(groups(module), lr=lr, betas=betas, **options)
    trainer = {"clip": clip, "precision": precision, "accelerator": "cuda"}
    return run(
        module,
        optimizer,
        schedule(optimizer, factor),
        setting,
        total=total,
        batch=batch,
        per_epoch=total,
        trainer=trainer,
    )


def nanogpt() -> Report:
    return _adamw(
        "transformers/gpt2", lambda m: by_dimension(m, 0.1), 6e-4, cosine(600_000, 2000, 0.1), 600_000, "llm", batch=480
    )


def litgpt() -> Report:
    return _adamw(
        "transformers/llama", lambda m: everything(m, 0.1), 4e-4, cosine(1_430_000, 2000, 0.1), 1_430_000, "llm"
    )


def torchtitan() -> Report:
    return _adamw("transformers/llama", lambda m: everything(m, 0.1), 3e-4, warm_linear(10_000, 200), 10_000, "llm")


def olmo() -> Report:
    return _adamw(
        "transformers/llama",
        lambda m: without(m, 0.1, lambda n, p: "embed_tokens" in n),
        3e-4,
        cosine(1_413_814, 2000, 0.1),
        1_413_814,
        "llm",
    )


def smollm3() -> Report:
    return _adamw(
        "transformers/llama_tied",
        lambda m: without(m, 0.1, lambda n, p: "embed_tokens" in n),
        2e-4,
        stable(4_720_000, 2000, 0.11),
        4_720_000,
        "llm",
    )


def nemo() -> Report:
    return _adamw(
        "transformers/llama",
        lambda m: by_dimension(m, 0.1),
        3e-4,
        cosine(1_168_251, 2000, 0.1),
        1_168_251,
        "llm",
        eps=1e-5,
    )


def llama3() -> Report:
    """Llama 3 8B as its paper has it; exclusions as in Megatron."""
    return _adamw(
        "transformers/llama",
        lambda m: by_dimension(m, 0.1),
        3e-4,
        cosine(1_200_000, 8000, 0.01),
        1_200_000,
        "llm",
    )


def qwen_by_role() -> Report:
    """Mixture of experts with the usual AdamW."""
    return _adamw(
        "transformers/mixtral", lambda m: by_dimension(m, 0.1), 2.2e-4, stable(500_000, 2000, 0.2), 500_000, "llm"
    )


def roberta() -> Report:
    return _adamw(
        "transformers/bert",
        lambda m: everything(m, 0.01),
        5e-4,
        warm_linear(125_000, 10_000),
        125_000,
        "llm",
        betas=(0.9, 0.98),
        clip=0.0,
        eps=1e-6,
        precision="16-mixed",
    )


class MoonlightMuon(torch.optim.Optimizer):
    """Moonlight's toy_train.py, as far as its arguments go: one lr, one decay, state says who is a matrix."""

    def __init__(self, lr: float, wd: float, muon_params: list[Any], adamw_params: list[Any]) -> None:
        defaults = {"lr": lr, "weight_decay": wd, "momentum": 0.95, "adamw_betas": (0.9, 0.95), "betas": (0.9, 0.95)}
        super().__init__([*muon_params, *adamw_params], defaults)
        for p in muon_params:
            self.state[p]["use_muon"] = True
        for p in adamw_params:
            self.state[p]["use_muon"] = False

    def adjust_lr_for_muon(self, lr: float, shape: Any) -> float:
        """The source's name."""
        return lr * 0.2 * math.sqrt(max(shape[0], shape[1]))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing is trained."""


def _muon_split(module: nn.Module) -> tuple[list[Any], list[Any]]:
    named = list(module.named_parameters())
    hidden = [p for n, p in named if p.ndim >= 2 and "embed_tokens" not in n and "lm_head" not in n]
    taken = {id(p) for p in hidden}
    return hidden, [p for _, p in named if id(p) not in taken]


def moonlight() -> Report:
    module = build("transformers/qwen2")
    hidden, rest = _muon_split(module)
    optimizer = MoonlightMuon(1e-3, 0.1, hidden, rest)
    return run(module, optimizer, schedule(optimizer, cosine(10_000, 100)), "llm", total=10_000, batch=64)


class MuonWithAuxAdam(torch.optim.Optimizer):
    """KellerJordan/Muon's class, as far as its groups go."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing is trained."""


def keller() -> Report:
    module = build("transformers/llama")
    hidden, rest = _muon_split(module)
    optimizer = MuonWithAuxAdam(
        [
            {"params": hidden, "use_muon": True, "lr": 0.02, "momentum": 0.95, "weight_decay": 0.01},
            {
                "params": [p for p in rest if p.ndim < 2],
                "use_muon": False,
                "lr": 3e-4,
                "betas": BETAS,
                "weight_decay": 0.0,
            },
            {
                "params": [p for p in rest if p.ndim >= 2],
                "use_muon": False,
                "lr": 3e-4,
                "betas": BETAS,
                "weight_decay": 0.0,
            },
        ]
    )
    return run(module, optimizer, schedule(optimizer, stable(10_000, 1, 0.6)), "llm", total=10_000, batch=64)


def dion_muon() -> Report:
    module = build("transformers/llama")
    hidden, rest = _muon_split(module)
    muon = torch.optim.Muon(
        hidden, lr=0.02, weight_decay=0.01, momentum=0.95, nesterov=False, adjust_lr_fn="spectral_unclamped"
    )
    adamw = torch.optim.AdamW(rest, lr=2e-3, betas=BETAS, weight_decay=0.0)
    schedulers = [*schedule(muon, stable(3000, 0, 0.2)), *schedule(adamw, stable(3000, 0, 0.2))]
    return run(
        module, [muon, adamw], schedulers, "llm", total=3000, batch=1024, trainer={"automatic": True, "clip": 0.0}
    )


def torch_muon_matched() -> Report:
    """torch.optim.Muon in AdamW's units, as Moonlight's paper advises."""
    module = build("transformers/llama")
    hidden, rest = _muon_split(module)
    muon = torch.optim.Muon(hidden, lr=3e-4, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=3e-4, betas=BETAS, weight_decay=0.0)
    schedulers = [*schedule(muon, cosine(10_000, 200)), *schedule(adamw, cosine(10_000, 200))]
    return run(module, [muon, adamw], schedulers, "llm", total=10_000, batch=1024)


def hf_trainer() -> Report:
    """TrainingArguments as they come: 5e-5, linear, no warmup, decay 0, clip 1; here with the usual 0.01."""
    from transformers import get_linear_schedule_with_warmup

    module = build("transformers/roberta")
    optimizer = torch.optim.AdamW(hf_groups(module, 0.01), lr=5e-5)
    linear = get_linear_schedule_with_warmup(optimizer, 0, 11_000)
    return run(
        module,
        optimizer,
        stepped(linear),
        "llm/finetune",
        total=11_000,
        batch=32,
        per_epoch=3667,
        trainer={"clip": 1.0},
    )


def whisper() -> Report:
    """The fine-tuning of the Hugging Face course: 1e-5, 500 of 5,000 steps of warmup."""
    from transformers import get_linear_schedule_with_warmup

    module = build("transformers/whisper")
    optimizer = torch.optim.AdamW(hf_groups(module, 0.0), lr=1e-5)
    linear = get_linear_schedule_with_warmup(optimizer, 500, 5000)
    return run(module, optimizer, stepped(linear), "llm/finetune", total=5000, batch=16, trainer={"clip": 1.0})


def torchtune_full() -> Report:
    from transformers import get_cosine_schedule_with_warmup

    module = build("transformers/llama")
    optimizer = torch.optim.AdamW(everything(module, 0.01), lr=2e-5)
    warm = get_cosine_schedule_with_warmup(optimizer, 100, 3000)
    return run(
        module, optimizer, stepped(warm), "llm/finetune", total=3000, batch=64, trainer={"precision": "bf16-true"}
    )


def _peft(dora: bool = False) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_dora=dora)
        return get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=128, **small)), config)


def torchtune_lora() -> Report:
    from transformers import get_cosine_schedule_with_warmup

    module = _peft()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.01)
    warm = get_cosine_schedule_with_warmup(optimizer, 100, 3000)
    return run(module, optimizer, stepped(warm), "llm/lora", total=3000, batch=64, trainer={"clip": 1.0})


def qlora_all_parameters() -> Report:
    """alpaca-lora: the Trainer is given a model whose base is frozen; 3e-4, linear, 100 steps of warmup."""
    from transformers import get_linear_schedule_with_warmup

    module = _peft(dora=True)
    optimizer = torch.optim.AdamW(hf_groups(module, 0.0), lr=3e-4)
    linear = get_linear_schedule_with_warmup(optimizer, 100, 1164)
    return run(module, optimizer, stepped(linear), "llm/lora", total=1164, batch=128, trainer={"clip": 1.0})


def t5_adafactor() -> Report:
    """transformers' advice for T5: Adafactor without relative steps at a constant 1e-3, no other clipping."""
    from transformers import Adafactor

    module = build("transformers/t5")
    optimizer = Adafactor(module.parameters(), lr=1e-3, scale_parameter=False, relative_step=False, warmup_init=False)
    return run(module, optimizer, schedule(optimizer, lambda step: 1.0), "llm/finetune", total=20_000, batch=128)


def t5_pretrain() -> Report:
    """T5's inverse square root with 10,000 warmup steps; it has no end."""
    from timm.optim import Adafactor

    module = build("transformers/t5")
    optimizer = Adafactor(module.parameters(), lr=1e-2)
    root = schedule(optimizer, lambda step: 100 / math.sqrt(max(step, 10_000)))
    return run(module, optimizer, root, None, total=524_288, batch=128)


def transformer_base() -> Report:
    """Attention is all you need: Adam (0.9, 0.98), 4,000 warmup steps, inverse square root."""
    module = build("transformers/t5")
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0 * 512**-0.5, betas=(0.9, 0.98), eps=1e-9)
    noam = LambdaLR(optimizer, lambda s: min((s + 1) ** -0.5, (s + 1) * 4000**-1.5))
    return run(module, optimizer, stepped(noam), None, total=100_000, batch=800)


def bert_lamb() -> Report:
    from timm.optim import Lamb

    module = build("transformers/bert")
    groups = without(module, 0.01, lambda n, p: any(word in n for word in ("bias", "LayerNorm", "gamma", "beta")))
    optimizer = Lamb(groups, lr=6e-3, betas=(0.9, 0.999), eps=1e-6, max_grad_norm=1.0)
    total, warmup = 7038, 2000
    poly = schedule(optimizer, lambda s: (s + 1) / warmup if s < warmup else max(0.0, 1 - s / total) ** 0.5)
    return run(module, optimizer, poly, None, total=total, batch=65_536, trainer={"precision": "16-mixed"})


def open_clip() -> Report:
    return _adamw(
        "transformers/clip",
        lambda m: without(m, 0.2, lambda n, p: p.ndim < 2 or "bias" in n or "logit_scale" in n),
        5e-4,
        cosine(390_000, 10_000),
        390_000,
        None,
        betas=(0.9, 0.98),
        eps=1e-6,
        clip=0.0,
        batch=32_768,
    )


def clip_finetuning() -> Report:
    """FLIP-style fine-tuning: 1e-5, decay 0.1 by dimensions, 500 steps of warmup."""
    return _adamw(
        "transformers/clip",
        lambda m: by_dimension(m, 0.1),
        1e-5,
        cosine(25_000, 500),
        25_000,
        "vit/finetune",
        betas=(0.9, 0.999),
        batch=512,
    )


def llava_first() -> Report:
    """Stage 1: the projector alone."""
    module = build("transformers/llava")
    for name, p in module.named_parameters():
        p.requires_grad_("multi_modal_projector" in name)
    return _adamw(
        "",
        lambda m: everything(m, 0.0),
        1e-3,
        cosine(2180, 65),
        2180,
        "vlm",
        betas=(0.9, 0.999),
        batch=256,
        module=module,
    )


def llava_second() -> Report:
    return _adamw(
        "transformers/llava",
        lambda m: everything(m, 0.0),
        2e-5,
        cosine(5197, 156),
        5197,
        "vlm",
        betas=(0.9, 0.999),
        batch=128,
    )


LANGUAGE: dict[str, tuple[str, Build]] = {
    "nanoGPT GPT-2 124M": ("karpathy/nanoGPT train.py:48-68, model.py:263", nanogpt),
    "litgpt TinyLlama": ("Lightning-AI/litgpt config_hub/pretrain/tinyllama.yaml", litgpt),
    "torchtitan Llama 3 8B": ("pytorch/torchtitan optimizer.py:378, lr_scheduler.py:49", torchtitan),
    "OLMo 3 7B": ("allenai/OLMo-core scripts/official/OLMo3", olmo),
    "SmolLM3": ("huggingface/smollm stage1_8T.yaml:203-222", smollm3),
    "NeMo llama3_8b": ("NVIDIA/NeMo recipes/llama3_8b.py:186, optim/adam.py:24", nemo),
    "Llama 3 8B (paper)": ("arXiv:2407.21783 section 3.4", llama3),
    "Mixture of experts, WSD": ("torchtitan DeepSeek-V3 config_registry.py", qwen_by_role),
    "RoBERTa (fairseq)": ("facebookresearch/fairseq roberta/config/pretraining/base.yaml", roberta),
    "Moonlight Muon": ("MoonshotAI/Moonlight examples/toy_train.py", moonlight),
    "KellerJordan Muon + AdamW": ("KellerJordan/Muon README.md:18-46", keller),
    "dion muon_160m": ("microsoft/dion configs/muon_160m.yaml", dion_muon),
    "torch Muon, RMS matched": ("torch.optim.Muon, arXiv:2502.16982", torch_muon_matched),
    "HF Trainer fine-tuning": ("huggingface/transformers training_args.py, trainer.py", hf_trainer),
    "Whisper fine-tuning": ("huggingface.co/blog/fine-tune-whisper", whisper),
    "torchtune full fine-tuning": ("pytorch/torchtune recipes/configs/llama3/8B_full.yaml", torchtune_full),
    "torchtune LoRA": ("pytorch/torchtune recipes/configs/llama3/8B_lora.yaml", torchtune_lora),
    "DoRA by the HF Trainer": ("tloen/alpaca-lora finetune.py, with peft's DoRA", qlora_all_parameters),
    "T5 fine-tuning, Adafactor": ("transformers Adafactor docs", t5_adafactor),
    "T5 pretraining, Adafactor": ("arXiv:1910.10683 section 3.1.2", t5_pretrain),
    "Transformer base, Noam": ("arXiv:1706.03762 section 5.3", transformer_base),
    "LAMB BERT": ("NVIDIA/DeepLearningExamples BERT run_pretraining.sh:17-34", bert_lamb),
    "open_clip ViT-B/32": ("mlfoundations/open_clip params.py:5-12, optim.py:60", open_clip),
    "CLIP fine-tuning": ("arXiv:2212.06138, rates of its AdamW", clip_finetuning),
    "LLaVA 1.5 stage 1": ("haotian-liu/LLaVA scripts/v1_5/pretrain.sh", llava_first),
    "LLaVA 1.5 stage 2": ("haotian-liu/LLaVA scripts/v1_5/finetune.sh", llava_second),
}
