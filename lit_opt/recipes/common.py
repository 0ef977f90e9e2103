"""Values that several recipes share, so that each number has one source."""

from __future__ import annotations

from lit_opt.recipes.schema import Decay, Value

# Roles are decided in lit_opt.param_groups, which gives the reason for each parameter.
NO_DECAY = Value(
    ("bias", "norm", "embedding", "position", "token", "scale", "ssm", "vector"),
    unit="roles of parameters",
    common_practice="biases and norms: nearly all; embeddings: OLMo and SmolLM3 exclude them, nanoGPT does not",
    source="nanoGPT model.py:263, timm/optim/_param_groups.py:19, OLMo-core optim/config.py:106, SmolLM3 stage1_8T.yaml",
)

CLIP_OFF = Value(
    0.0,
    unit="global gradient norm, 0 is off",
    common_practice="none; big_vision's BiT clips at 1.0",
    source="torchvision references, mmpretrain, NVIDIA DeepLearningExamples ConvNets",
)

EMA_OFF = Value(
    0.0,
    unit="decay per optimizer step, 0 is off",
    common_practice="off; ConvNeXt and torchvision v2 offer it",
    source="DeiT, MAE, nanoGPT, OLMo-core: no EMA in the base recipe",
)

ADAM_EPS = Value(
    1e-8,
    unit="added to the root of the second moment",
    common_practice="1e-8; NeMo 1e-5 is the outlier",
    source="nanoGPT train.py, torchtitan optimizer.py:378, OLMo-core",
)

ADAFACTOR_SOURCE = "arXiv:2106.04560; google-research/big_vision configs/vit_i1k.py:131-137"
ADAFACTOR_PRACTICE = "big_vision's form at Adam's values; three other Adafactors mean other things by lr"
ADAFACTOR_MOMENTUM = Value(
    0.9,
    unit="decay of the momentum per step, kept in bfloat16",
    common_practice="0.9 in bfloat16",
    source=ADAFACTOR_SOURCE,
)
EIGHT_BIT_SOURCE = "arXiv:2110.02861; bitsandbytes' documentation (no hyperparameter tuning)"

# Around any optimizer: SAM's own value, shared with its registry row.
SAM_RHO = Value(
    0.05,
    unit="radius of the neighbourhood, norm over all weights",
    common_practice="0.05; CIFAR-100 0.1; 0.1 to 0.6 for ViT without augmentation; 0.5 when applied every 10 steps",
    source="arXiv:2010.01412; davda54/sam example/train.py; big_vision proj/gsam; mosaicml/composer algorithms/sam",
)


def sam(base: str, common_practice: str) -> dict[str, Value]:
    """SAM's keywords around an optimizer.

    Args:
        base: Registry name of the optimizer that steps.
        common_practice: What others put inside.

    Example:
        >>> sam("sgd", "SGD")["rho"].number
        0.05
    """
    inside = Value(
        base,
        unit="registry name of the optimizer inside",
        common_practice=common_practice,
        source="arXiv:2010.01412 (SGD); big_vision proj/gsam (Adam)",
    )
    return {"base": inside, "rho": SAM_RHO}


def optimizer_name(name: str, common_practice: str, source: str) -> Value:
    """An optimizer as a value.

    Args:
        name: Registry name.
        common_practice: What others take.
        source: Where that is read.

    Example:
        >>> optimizer_name("sam", "AdamW", "arXiv:2010.01412").number
        'sam'
    """
    return Value(name, unit="registry name", common_practice=common_practice, source=source)


_MUON_README = "KellerJordan/Muon README.md, muon.py"

# AdamW beside matrices in Muon's own units (lr about 0.02), for embeddings, heads, norms and biases.
MUON_FALLBACK = {
    "lr": Value(
        3e-4,
        unit="peak, per step, of what is left to AdamW",
        common_practice="3e-4; nanochat 0.3 for the embedding and 0.008 for the head",
        source=f"{_MUON_README}; nanochat scripts/base_train.py",
    ),
    "betas": Value(
        (0.9, 0.95), unit="decay of the moments per step", common_practice="(0.9, 0.95)", source=_MUON_README
    ),
    "eps": Value(
        1e-8,
        unit="added to the root of the second moment",
        common_practice="1e-8 in Moonlight; 1e-10 in KellerJordan/Muon and nanochat",
        source="MoonshotAI/Moonlight examples/toy_train.py",
    ),
    "weight_decay": Value(
        0.01,
        unit="decoupled, times the lr of AdamW",
        common_practice="0.01 on what is decayed at all",
        source=f"{_MUON_README}; microsoft/dion configs/muon_160m.yaml (0.01)",
    ),
}

# Scion's own: lr, decay and radii belong together.
SCION_SOURCE = "LIONS-EPFL/scion README.md, examples/modded-nanogpt/train_gpt_scion.py, arXiv:2502.07529"
SCION_LR = Value(
    2**-12,
    unit="peak, per step; multiplies the decay too, and belongs to radius 50",
    common_practice="2^-12; 3.6e-4 at 0.5 M tokens in modded-nanogpt",
    source=SCION_SOURCE,
)
SCION_DECAY = Value(
    1.0,
    unit="times lr; 1 is the constrained method, 0 the unconstrained one",
    common_practice="1 (constrained)",
    source=SCION_SOURCE,
)
SCION = {
    "momentum": Value(
        0.1,
        unit="weight of the new gradient; others call it 0.9",
        common_practice="0.1; up to 0.5 for short runs with little noise",
        source=SCION_SOURCE,
    ),
    "norm": Value("Spectral", unit="norm of the hidden matrices", common_practice="Spectral", source=SCION_SOURCE),
    "scale": Value(50.0, unit="radius of the hidden matrices", common_practice="50", source=SCION_SOURCE),
    "last_scale": Value(
        3000.0, unit="radius of head and embedding, norm Sign", common_practice="3000", source=SCION_SOURCE
    ),
}

SOAP_SOURCE = "nikhilvyas/SOAP README.md, soap.py:47-62"
SOAP_LR = Value(
    3e-3, unit="peak, per step, of the matrices and of AdamW beside them", common_practice="3e-3", source=SOAP_SOURCE
)
SOAP_DECAY = Value(0.01, unit="times lr, after the update", common_practice="0.01", source=SOAP_SOURCE)
SOAP = {
    "betas": Value(
        (0.95, 0.95),
        unit="decay of the moments per step; the second is also that of the statistics",
        common_practice="(0.95, 0.95)",
        source=SOAP_SOURCE,
    ),
    "precondition_frequency": Value(
        10, unit="steps from one change of the eigenbases to the next", common_practice="10", source=SOAP_SOURCE
    ),
}

_SPLUS_RUNS = "kvfrans/splus experiments/run_trials.py"
SPLUS_LR = Value(
    0.2,
    unit="peak, per step, of the matrices, times 2 / (rows + cols)",
    common_practice="0.2 for common transformers, or Adam's lr x hidden size x 2; the class's default is 0.1",
    source="kvfrans/splus README.md",
)
SPLUS_TOKENS = 2**18
SPLUS_BATCH = Value(
    SPLUS_TOKENS,
    unit="tokens",
    common_practice="1024 sequences of 256 tokens",
    source=f"{_SPLUS_RUNS} (batch_size 1024, sequence_length 256)",
)
SPLUS_DECAY = Value(
    0.1,
    unit="times lr 2 / (rows + cols), after the update",
    common_practice="0.1 in the paper's runs; the class's default is 0.01",
    source=_SPLUS_RUNS,
)

BF16 = Value(
    "bf16-mixed",
    unit="Trainer(precision=...)",
    common_practice="bf16 with float32 master weights and reductions",
    source="torchtitan, OLMo-core, litgpt",
)

CHANNELS_LAST = Value(
    True,
    unit="memory format of the module",
    common_practice="NHWC on recent GPUs",
    source="NVIDIA DeepLearningExamples ConvNets/resnet50v1.5/README.md",
)


def label_smoothing(source: str) -> Value:
    """Label smoothing 0.1 as read in `source`."""
    return Value(0.1, unit="label smoothing of the loss", common_practice="0.1", source=source)


def _final(fraction: float, source: str) -> Value:
    return Value(fraction, unit="fraction of the peak", common_practice="0 to 0.1", source=source)


def _kind(kind: str, source: str) -> Value:
    return Value(kind, unit="shape", common_practice="cosine in most recipes", source=source)


# What `decay="..."` means where a recipe's own decay is of another kind.
DECAYS = {
    "cosine": Decay(
        kind=_kind("cosine", "arXiv:1608.03983"), final=_final(0.0, "DeiT, torchvision ResNet50 v2, litgpt")
    ),
    "linear": Decay(
        kind=_kind("linear", "torchtitan lr_scheduler.py:49"),
        final=_final(0.0, "torchtitan lr_scheduler.py:49"),
    ),
    "polynomial": Decay(
        kind=_kind("polynomial", "mlcommons/training lars_util.py:77"),
        final=_final(0.0, "mlcommons/training lars_util.py:77"),
        power=Value(2.0, unit="exponent", common_practice="2 for LARS, 0.5 for LAMB", source="lars_util.py:77"),
    ),
    "step": Decay(
        kind=_kind("step", "mmpretrain imagenet_bs256.py"),
        milestones=Value(
            (1 / 3, 2 / 3, 8 / 9),
            unit="fractions of the run",
            common_practice="epochs 30, 60 and 90 of 100",
            source="mmpretrain imagenet_bs256.py",
        ),
        gamma=Value(0.1, unit="factor", common_practice="0.1", source="mmpretrain imagenet_bs256.py"),
    ),
    "constant": Decay(kind=_kind("constant", "DiT, SiT")),
    "wsd": Decay(
        kind=_kind("wsd", "torchtitan lr_scheduler.py:49, SmolLM3 stage1_8T.yaml"),
        final=_final(0.0, "SmolLM3 stage1_8T.yaml"),
        cooldown=Value(
            0.2,
            unit="fraction of the run, or steps from 1 up",
            common_practice="0.2 in torchtitan, 0.11 in SmolLM3",
            source="torchtitan lr_scheduler.py:49 (decay_ratio), SmolLM3 stage1_8T.yaml",
        ),
    ),
}
