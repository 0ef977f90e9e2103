"""Language models: pretraining with AdamW, warmup, cosine and clipping; fine-tuning, in full and by adapters."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes import muon, preconditioned
from lit_opt.recipes.common import (
    ADAFACTOR_MOMENTUM,
    ADAFACTOR_PRACTICE,
    ADAFACTOR_SOURCE,
    ADAM_EPS,
    BF16,
    EIGHT_BIT_SOURCE,
    EMA_OFF,
    MUON_FALLBACK,
    NO_DECAY,
    optimizer_name,
)
from lit_opt.recipes.schema import Decay, LearningRate, RecipeSpec, Scaling, Value, Warmup

# The field guide's range; the size table below comes from published runs.
_RANGE = (1e-4, 6e-4)
_UNIT = "peak, per step at 0.5 M tokens"


def _peak(lr: float, practice: str, source: str) -> Value:
    return Value(lr, unit=_UNIT, range=_RANGE, common_practice=practice, source=source)


PRETRAINING = RecipeSpec(
    name="llm",
    setting="llm",
    summary="Language-model pretraining with AdamW, warmup, cosine decay and clipping",
    deviate="Muon and its family if stability or scaling efficiency is the bottleneck",
    optimizer=Value(
        "adamw",
        unit="registry name",
        common_practice="AdamW in nanoGPT, torchtitan, OLMo-core, SmolLM3 and litgpt; Muon in nanochat and Moonlight",
        source="arXiv:1711.05101; nanoGPT train.py, torchtitan optimizer.py:378, OLMo-core, litgpt",
    ),
    lr=LearningRate(
        base=_peak(3e-4, "3e-4 at 7-8 B", "torchtitan llama3 8B, OLMo3-7B, NeMo llama3_8b.py:186"),
        by_parameters=(
            (350e6, _peak(6e-4, "6e-4 at 124 M; tiny models use 1e-3", "nanoGPT train.py:48-68")),
            (13e9, _peak(3e-4, "3e-4 at 7-8 B", "torchtitan llama3 8B, OLMo3-7B, NeMo llama3_8b.py:186")),
            (70e9, _peak(1.5e-4, "1.5e-4 at 70 B", "torchtitan llama3 70B config_registry.py")),
            (float("inf"), _peak(9e-5, "9e-5 at 175 B, below the guide's range", "NeMo gpt3_175b.py")),
        ),
        scaling=Scaling(
            rule=Value(
                "sqrt",
                unit="rule",
                common_practice="sqrt for Adam-kind methods; size matters more than batch here",
                source="arXiv:2205.10287; nanochat scripts/base_train.py:290",
            ),
            reference_batch=Value(
                2**19,
                unit="tokens",
                common_practice="0.5 M at 124 M, 4.2 M at 7-8 B",
                source="nanoGPT train.py (491,520), nanochat base_train.py (2^19)",
            ),
            batch_unit="tokens",
            # 3e-4 was published at 4.2 M tokens, so a larger factor would leave every published run.
            limit=Value(
                4 * 2**19,
                unit="tokens",
                common_practice="the rate is raised at most twofold; ask for more with lr=",
                source="lit-opt, from torchtitan 8B and OLMo3-7B (3e-4 at 4.2 M tokens)",
            ),
        ),
    ),
    weight_decay=Value(
        0.1,
        unit="decoupled, times lr",
        range=(0.01, 0.1),
        common_practice="0.1 in 9 of 15 pretraining runs",
        source="nanoGPT train.py:48-68, torchtitan optimizer.py:378, OLMo3-7B",
    ),
    hyperparameters={
        "betas": Value(
            (0.9, 0.95),
            unit="decay of the moments per step",
            common_practice="(0.9, 0.95)",
            source="nanoGPT train.py, torchtitan, OLMo-core, NeMo, litgpt",
        ),
        "eps": ADAM_EPS,
    },
    no_decay=NO_DECAY,
    warmup=Warmup(
        length=Value(
            0.02,
            unit="fraction of the run",
            range=(0.01, 0.05),
            common_practice="2000 steps, which is 0.04 to 0.4 % of long runs; 3 % for LLaVA and nanoVLM",
            source="field guide 1-5 %; nanoVLM train.py, AlgoPerf 2-10 %",
        ),
        max_steps=Value(
            2000,
            unit="steps",
            common_practice="2000",
            source="nanoGPT train.py, litgpt pretrain.py, NeMo, OLMo3, SmolLM3",
        ),
        start=Value(0.0, unit="fraction of the peak", common_practice="0", source="nanoGPT train.py"),
    ),
    decay=Decay(
        kind=Value(
            "cosine",
            unit="shape",
            common_practice="cosine; WSD in SmolLM3 and torchtitan's mixtures of experts",
            source="nanoGPT train.py, litgpt, NeMo, OLMo-core",
        ),
        final=Value(
            0.1,
            unit="fraction of the peak",
            common_practice="0.1",
            source="nanoGPT train.py (lr/10), OLMo-core alpha_f, NeMo, nanoVLM",
        ),
    ),
    clip=Value(
        1.0,
        unit="global gradient norm, 0 is off",
        common_practice="1.0 in 8 codebases",
        source="nanoGPT, torchtitan config/configs.py:64, OLMo-core, SmolLM3, litgpt, NeMo",
    ),
    ema=EMA_OFF,
    hints={"precision": BF16},
)

_FULL = "torchtune recipes/configs/*_full*.yaml (2e-5), LLaVA scripts/v1_5/finetune.sh (2e-5 at 128 samples)"
_LORA = "torchtune recipes/configs/*_lora*.yaml (3e-4)"

FINETUNE = replace(
    PRETRAINING,
    name="llm/finetune",
    finetunes=True,
    summary="Fine-tuning of all weights of a language model with AdamW at a low rate",
    deviate="llm/lora when memory is short, or when little data must not spoil what the model knows",
    lr=LearningRate(
        base=Value(
            2e-5,
            unit="peak, per step at 64 to 128 samples",
            common_practice="2e-5 in torchtune's full fine-tuning and LLaVA; 1e-5 to 5e-5 elsewhere",
            source=_FULL,
        ),
        scaling=Scaling(
            rule=Value("none", unit="rule", common_practice="not scaled", source=_FULL),
            reference_batch=Value(128, unit="samples", common_practice="64 to 128", source=_FULL),
            batch_unit="samples",
        ),
    ),
    weight_decay=Value(
        0.01,
        unit="decoupled, times lr",
        common_practice="0.01 in 76 of torchtune's configs, 0 in LLaVA",
        source="torchtune recipes/configs (torch's default, 76 files); LLaVA scripts/v1_5/finetune.sh",
    ),
    hyperparameters={
        "betas": Value(
            (0.9, 0.999),
            unit="decay of the moments per step",
            common_practice="(0.9, 0.999), torch's default",
            source="torchtune recipes/configs (unset), LLaVA (transformers' default)",
        ),
        "eps": ADAM_EPS,
    },
    warmup=Warmup(
        length=Value(
            0.03,
            unit="fraction of the run",
            common_practice="3 % in LLaVA, 100 steps in torchtune",
            source="LLaVA scripts/v1_5/finetune.sh; torchtune recipes/configs",
        ),
        start=Value(0.0, unit="fraction of the peak", common_practice="0", source="transformers optimization.py"),
    ),
    decay=Decay(
        kind=Value("cosine", unit="shape", common_practice="cosine", source="torchtune, LLaVA scripts/v1_5"),
        final=Value(0.0, unit="fraction of the peak", common_practice="0", source="torchtune (num_cycles 0.5), LLaVA"),
    ),
    clip=Value(
        1.0,
        unit="global gradient norm, 0 is off",
        common_practice="1.0 in LLaVA (transformers' default); off in 149 of torchtune's configs, 1.0 in 13",
        source="LLaVA scripts/v1_5 (transformers' max_grad_norm); torchtune recipes/configs",
    ),
)

LORA = replace(
    FINETUNE,
    name="llm/lora",
    summary="Fine-tuning of a language model by adapters (LoRA) alone, with AdamW",
    deviate="llm/finetune when the new data are many and far from what the model knows",
    lr=replace(
        FINETUNE.lr,
        base=Value(
            3e-4,
            unit="peak, per step at 32 to 128 samples",
            common_practice="3e-4; 1e-4 to 2e-4 for large models, about ten times the rate of full fine-tuning",
            source=_LORA,
        ),
        scaling=replace(
            FINETUNE.lr.scaling, rule=Value("none", unit="rule", common_practice="not scaled", source=_LORA)
        ),
    ),
    trains="adapters",
)

_ADAMW = PRETRAINING.hyperparameters

MUON = replace(
    PRETRAINING,
    name="llm/muon",
    summary="Language-model pretraining with Muon on the hidden matrices and AdamW on the rest, in Muon's own units",
    deviate="llm/muon_rms to change an existing AdamW run as little as possible: one rate and one decay for all",
    optimizer=muon.MUON,
    lr=muon.unscaled(
        muon.LR,
        Value(
            2**20,
            unit="tokens",
            common_practice="1 M in dion, 0.5 M in nanochat",
            source="microsoft/dion configs/muon_160m.yaml (1024 x 1024), nanochat scripts/base_train.py (2^19)",
        ),
        "tokens",
    ),
    weight_decay=muon.WEIGHT_DECAY,
    hyperparameters=muon.HYPERPARAMETERS,
    fallback=MUON_FALLBACK,
)

MUON_RMS = replace(
    PRETRAINING,
    name="llm/muon_rms",
    summary="Language-model pretraining with Muon in AdamW's units: one rate and one decay for matrices and the rest",
    deviate="llm/muon for the field guide's own numbers, which its range and most small-scale results belong to",
    optimizer=muon.MUON,
    hyperparameters=muon.HYPERPARAMETERS_RMS,
    fallback=_ADAMW,
)

_NORMUON = "zichongli5/NorMuon normuon.py, arXiv:2510.05491"

NORMUON = replace(
    MUON,
    name="llm/normuon",
    summary="Language-model pretraining with NorMuon: Muon with rows of equal length; rates from llm/muon, unverified",
    deviate="llm/muon, whose numbers are published",
    optimizer=Value(
        "normuon",
        unit="registry name; embeddings, heads, norms, biases and vectors go to AdamW",
        common_practice="NorMuon in nanochat and modded-nanogpt; Muon elsewhere",
        source=_NORMUON,
    ),
    lr=replace(MUON.lr, base=muon.transferred(muon.LR, "llm/muon")),
    weight_decay=muon.transferred(muon.WEIGHT_DECAY, "llm/muon"),
    hyperparameters={
        **muon.all_transferred(muon.HYPERPARAMETERS, "llm/muon"),
        "beta2": Value(
            0.95,
            unit="decay of the rows' second moment per step",
            common_practice="0.95; 0.9 in nanochat",
            source=f"{_NORMUON}; microsoft/dion normuon.py",
        ),
    },
    fallback=muon.all_transferred(MUON_FALLBACK, "llm/muon"),
)

ADAFACTOR = replace(
    PRETRAINING,
    name="llm/adafactor",
    summary="Language-model pretraining with big_vision's Adafactor at AdamW's values: when optimizer memory is short",
    deviate="llm when memory is enough; llm/adamw_8bit to stay closer to AdamW",
    optimizer=optimizer_name("adafactor_bv", ADAFACTOR_PRACTICE, ADAFACTOR_SOURCE),
    hyperparameters={"momentum": ADAFACTOR_MOMENTUM},
)

ADAMW_8BIT = replace(
    PRETRAINING,
    name="llm/adamw_8bit",
    summary="Language-model pretraining with AdamW's moments in 8 bits: a quarter of the optimizer memory",
    deviate="llm when memory is enough",
    optimizer=optimizer_name("adamw_8bit", "AdamW's values unchanged", EIGHT_BIT_SOURCE),
)

RECIPES = (
    *(PRETRAINING, MUON, MUON_RMS, NORMUON, ADAFACTOR, ADAMW_8BIT, FINETUNE, LORA),
    *preconditioned.pretraining_recipes(PRETRAINING),
)
