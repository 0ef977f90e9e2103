"""Vision transformers: from scratch with AdamW at 2.5e-4 per 256 images; fine-tuning with layer-wise rates."""

from __future__ import annotations

from dataclasses import replace

from lit_opt.recipes import muon
from lit_opt.recipes.common import ADAM_EPS, BF16, EMA_OFF, NO_DECAY, label_smoothing, optimizer_name, sam
from lit_opt.recipes.schema import Decay, LearningRate, RecipeSpec, Scaling, Value, Warmup

FROM_SCRATCH = RecipeSpec(
    name="vit",
    setting="vit",
    summary="Vision-transformer training with AdamW, warmup and cosine decay",
    deviate="SAM or conditioning methods when plateaus appear",
    optimizer=Value(
        "adamw",
        unit="registry name",
        common_practice="AdamW; DeiT III uses LAMB",
        source="DeiT main.py, MAE, Swin, ConvNeXt, big_vision",
    ),
    lr=LearningRate(
        base=Value(
            2.5e-4,
            unit="peak, per step at 256 images",
            range=(1e-4, 3e-4),
            common_practice="DeiT 5e-4 per 512, Swin 1e-3 at 1024, ConvNeXt 4e-3 at 4096: all 2.5e-4 per 256",
            source="DeiT main.py:349, mmpretrain imagenet_bs1024_adamw_swin.py, ConvNeXt main.py:74",
        ),
        scaling=Scaling(
            rule=Value(
                "linear_then_sqrt",
                unit="rule",
                common_practice="linear in DeiT, MAE, Swin and ConvNeXt; sqrt in DINOv2; none in big_vision",
                source="DeiT main.py:349; arXiv:2205.10287 (sqrt for Adam)",
            ),
            reference_batch=Value(
                256, unit="images", common_practice="256 or 512", source="MAE PRETRAIN.md, timm train.py"
            ),
            batch_unit="samples",
            limit=Value(
                1024,
                unit="images; linear below, sqrt above",
                common_practice="at 4096: big_vision 1e-3, this rule 2e-3, MAE 2.4e-3, ConvNeXt 4e-3",
                source="lit-opt, between big_vision vit_s16_i1k.py:78 and MAE PRETRAIN.md",
            ),
        ),
    ),
    weight_decay=Value(
        0.05,
        unit="decoupled, times lr",
        range=(0.01, 0.3),
        common_practice="0.05; 0.1 without strong augmentation; 0.3 with SAM and none",
        source="DeiT main.py, MAE, Swin, ConvNeXt; big_vision vit_s16_i1k.py:78",
    ),
    hyperparameters={
        "betas": Value(
            (0.9, 0.999),
            unit="decay of the moments per step",
            common_practice="(0.9, 0.999); (0.9, 0.95) for masked pretraining",
            source="DeiT, Swin, ConvNeXt; MAE main_pretrain.py",
        ),
        "eps": ADAM_EPS,
    },
    no_decay=NO_DECAY,
    warmup=Warmup(
        length=Value(
            0.05,
            unit="fraction of the run",
            common_practice="MAE 5 %, Swin and ConvNeXt 6.7 %, DeiT 1.7 %",
            source="MAE PRETRAIN.md, ConvNeXt main.py, DeiT main.py",
        ),
        start=Value(0.0, unit="fraction of the peak", common_practice="0 to 0.001", source="DeiT main.py (1e-6)"),
    ),
    decay=Decay(
        kind=Value("cosine", unit="shape", common_practice="cosine", source="DeiT, MAE, Swin, ConvNeXt"),
        final=Value(
            0.01,
            unit="fraction of the peak",
            common_practice="0 to 0.01",
            source="DeiT main.py (1e-5 of 1e-3)",
        ),
    ),
    clip=Value(
        1.0,
        unit="global gradient norm, 0 is off",
        common_practice="1.0 in big_vision, 5.0 in Swin, none in DeiT and ConvNeXt",
        source="big_vision configs/vit_s16_i1k.py",
    ),
    ema=EMA_OFF,
    hints={"precision": BF16, "label_smoothing": label_smoothing("DeiT main.py, ConvNeXt main.py")},
)

_MAE = "MAE FINETUNE.md, main_finetune.py"

FINETUNE = replace(
    FROM_SCRATCH,
    name="vit/finetune",
    finetunes=True,
    summary="Fine-tuning of a pretrained vision transformer with AdamW and a lower rate for each lower layer",
    deviate="the head alone (freeze the rest) when there are few images a class",
    lr=LearningRate(
        base=Value(
            5e-4,
            unit="peak, per step at 256 images",
            common_practice="MAE 5e-4 per 256 for ViT-B and 1e-3 for ViT-L and ViT-H, both run at 1,024",
            source=_MAE,
        ),
        scaling=Scaling(
            rule=Value(
                "linear_then_sqrt",
                unit="rule",
                common_practice="linear in MAE, which runs at 1,024 images; sqrt above it is lit-opt's",
                source=f"{_MAE}; arXiv:2205.10287 (sqrt for Adam)",
            ),
            reference_batch=Value(256, unit="images", common_practice="256", source=_MAE),
            batch_unit="samples",
            limit=Value(
                1024,
                unit="images; linear below, sqrt above",
                common_practice="1,024 is the batch of the published runs",
                source=_MAE,
            ),
        ),
    ),
    weight_decay=Value(0.05, unit="decoupled, times lr", common_practice="0.05", source=_MAE),
    hyperparameters={
        "betas": Value(
            (0.9, 0.999),
            unit="decay of the moments per step",
            common_practice="(0.9, 0.999), torch's default",
            source=_MAE,
        ),
        "eps": ADAM_EPS,
    },
    warmup=Warmup(
        length=Value(
            0.05,
            unit="fraction of the run",
            common_practice="5 epochs, of 100 for ViT-B and of 50 for ViT-L",
            source=_MAE,
        ),
        start=Value(0.0, unit="fraction of the peak", common_practice="0", source="MAE util/lr_sched.py"),
    ),
    decay=Decay(
        kind=Value("cosine", unit="shape", common_practice="cosine", source=_MAE),
        final=Value(0.0, unit="fraction of the peak", common_practice="1e-6 of 2e-3", source=_MAE),
    ),
    clip=Value(
        1.0,
        unit="global gradient norm, 0 is off",
        common_practice="none in MAE; 1.0 in vision_transformer",
        source="vision_transformer configs/common.py; MAE main_finetune.py (off)",
    ),
    layer_decay=Value(
        0.75,
        unit="factor of the rate, per layer below the head",
        common_practice="0.65 for ViT-B, 0.75 for ViT-L and ViT-H",
        source="MAE FINETUNE.md, util/lr_decay.py; arXiv:2106.08254 (BEiT)",
    ),
    hints={"precision": BF16, "label_smoothing": label_smoothing(_MAE)},
)

# Nobody published it: the rate and decay are the recipe's own, Muon's update has AdamW's length.
MUON = replace(
    FROM_SCRATCH,
    name="vit/muon",
    summary="Vision transformers with Muon in AdamW's units, at the rate and decay of vit; unverified",
    deviate="vit, whose numbers are published",
    optimizer=muon.transferred(muon.MUON, "llm/muon_rms"),
    lr=replace(FROM_SCRATCH.lr, base=muon.transferred(FROM_SCRATCH.lr.base, "vit")),
    weight_decay=muon.transferred(FROM_SCRATCH.weight_decay, "vit"),
    hyperparameters=muon.all_transferred(muon.HYPERPARAMETERS_RMS, "llm/muon_rms"),
    fallback=FROM_SCRATCH.hyperparameters,
)

SAM = replace(
    FROM_SCRATCH,
    name="vit/sam",
    summary="Vision transformers with SAM around AdamW: for plateaus and for training without strong augmentation",
    deviate="vit, at half the cost a step, while the loss still falls or augmentation is strong",
    optimizer=optimizer_name(
        "sam", "AdamW; SAM or GSAM without strong augmentation", "arXiv:2010.01412, arXiv:2106.01548"
    ),
    hyperparameters={**FROM_SCRATCH.hyperparameters, **sam("adamw", "Adam in GSAM, AdamW in arXiv:2106.01548")},
)

_DEIT_III = "DeiT III README_revenge.md:81,412"

LAMB = replace(
    FROM_SCRATCH,
    name="vit/lamb",
    summary="Vision transformers with LAMB, as DeiT III trains them: for batches of about 2,048 and long runs",
    deviate="vit, whose AdamW is the common choice below that",
    optimizer=optimizer_name("lamb", "AdamW; DeiT III uses LAMB", _DEIT_III),
    lr=LearningRate(
        base=Value(
            3e-3,
            unit="peak, per step at 2048 images",
            common_practice="3e-3 for B, L and H; 4e-3 for S",
            source=_DEIT_III,
        ),
        scaling=Scaling(
            rule=Value(
                "sqrt",
                unit="rule",
                common_practice="not scaled in DeiT III (--unscale-lr); sqrt in timm for LAMB",
                source=f"timm train.py:836, arXiv:1904.00962; {_DEIT_III}",
            ),
            reference_batch=Value(2048, unit="images", common_practice="2048", source=_DEIT_III),
            batch_unit="samples",
        ),
    ),
    weight_decay=Value(
        0.05,
        unit="inside the update, then times the trust ratio",
        common_practice="0.05; 0.02 on ImageNet-21k",
        source=_DEIT_III,
    ),
    hyperparameters={
        "betas": Value(
            (0.9, 0.999),
            unit="decay of the moments per step",
            common_practice="(0.9, 0.999)",
            source="arXiv:1904.00962",
        ),
        "eps": Value(
            1e-6,
            unit="added to the root of the second moment",
            common_practice="1e-6",
            source="arXiv:1904.00962; timm/optim/lamb.py",
        ),
    },
    # DeiT III takes apex' FusedLAMB, which limits the norm itself; the registry row does not, so it is set here.
    clip=Value(
        1.0,
        unit="global gradient norm, 0 is off",
        common_practice="1.0, inside the optimizer in timm and apex",
        source=f"timm/optim/lamb.py (max_grad_norm 1.0); {_DEIT_III}",
    ),
)

RECIPES = (FROM_SCRATCH, MUON, SAM, LAMB, FINETUNE)
