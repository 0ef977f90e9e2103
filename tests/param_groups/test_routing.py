"""Under a matrix method: who goes to it, who to AdamW, with which numbers, and how each matrix is read.

Expectations are globs over names, written by hand for each architecture: of all parameters with two or more dimensions
these alone are left to AdamW.
"""

from __future__ import annotations

import fnmatch
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lit_opt.errors import RecipeError
from lit_opt.optim import build as build_optimizer
from lit_opt.param_groups import group_parameters, snapshot_parameters
from lit_opt.param_groups.matrices import matrix_shape
from lit_opt.recipes import get_recipe
from lit_opt.recipes.schema import GroupRule
from lit_opt.resolve import RunFacts, resolve
from tests.param_groups.architectures import BUILDERS, build

FACTS = RunFacts(total_steps=100, global_batch=256, parameter_count=1_000_000)


def recipe(name="llm/muon", **overrides):
    return resolve(get_recipe(name), overrides, FACTS)


def algorithms(module, name="llm/muon", **overrides):
    return {row.name: row.algorithm for row in group_parameters(module, recipe(name, **overrides)).rows()}


# Architecture -> what is left to AdamW among parameters with two or more dimensions above 1 entry.
ADAMW = {
    "transformers/gpt2": ("*.wte.weight", "*.wpe.weight"),
    "transformers/llama": ("*.embed_tokens.weight", "lm_head.weight"),
    "transformers/llama_tied": ("*.embed_tokens.weight",),
    "transformers/mixtral": ("*.embed_tokens.weight", "lm_head.weight", "*.mlp.gate.weight"),
    "transformers/gpt_oss": ("*.embed_tokens.weight", "lm_head.weight", "*.router.weight", "*_bias", "*.router.bias"),
    "transformers/jamba": (
        "*.embed_tokens.weight", "lm_head.weight", "*.router.weight", "*.conv1d.weight", "*.A_log",
    ),
    "transformers/mamba": ("*.embeddings.weight", "*.conv1d.weight", "*.A_log", "*.dt_proj.weight"),
    "transformers/t5": ("shared.weight", "*.relative_attention_bias.weight"),
    "transformers/bert": ("*_embeddings.weight",),
    "transformers/roberta": ("*_embeddings.weight", "classifier.out_proj.weight"),
    "transformers/clip": ("*.token_embedding.weight", "*.position_embedding.weight", "*.patch_embedding.weight"),
    "transformers/vit": ("vit.embeddings.*", "classifier.weight"),
    "transformers/llava": ("*.embed_tokens.weight", "lm_head.weight", "*.patch_embedding.weight", "*.position_embedding.*"),
    "transformers/whisper": (
        "*.conv1.weight", "*.embed_tokens.weight", "*.embed_positions.weight",
    ),
    "transformers/detr": (
        "*.backbone.model.conv1.weight", "*.query_position_embeddings.*", "class_labels_classifier.weight",
        "bbox_predictor.layers.2.weight",
    ),
    "timm/vit": ("cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight"),
    "timm/deit_distilled": ("cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight", "head*.weight"),
    "timm/swin": ("patch_embed.proj.weight", "*.relative_position_bias_table", "head.fc.weight"),
    "timm/convnext": ("stem.0.weight", "*.conv_dw.weight", "head.fc.weight"),
    "timm/efficientnet": ("conv_stem.weight", "*.conv_dw.weight", "classifier.weight"),
    "timm/resnet": ("conv1.weight", "fc.weight"),
    "timm/regnet": ("stem.conv.weight", "head.fc.weight"),
    "timm/levit": ("stem.conv1.linear.weight", "*.attention_biases", "head.linear.weight", "head_dist.linear.weight"),
    "torchvision/resnet": ("conv1.weight", "fc.weight"),
    "torchvision/vit": ("class_token", "encoder.pos_embedding", "conv_proj.weight", "heads.head.weight"),
    "torchvision/inception": ("Conv2d_1a_3x3.conv.weight", "AuxLogits.fc.weight", "fc.weight"),
    "torchvision/maxvit": ("stem.0.0.weight", "*.conv_b.0.weight", "*.relative_position_bias_table", "classifier.5.weight"),
    "diffusers/unet2d": ("conv_in.weight", "conv_out.weight"),
    "diffusers/dit": ("pos_embed.proj.weight", "proj_out_?.weight", "*.embedding_table.weight"),
    "diffusers/flux": ("x_embedder.weight", "proj_out.weight"),
    "diffusers/vae": ("*.conv_in.weight", "*.conv_out.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ADAMW))
def test_real_architectures(name):
    found = algorithms(build(name))
    shapes = {info.name: info.shape for info in snapshot_parameters(build(name)).parameters if info.trainable}
    vectors = {n for n, shape in shapes.items() if sum(k > 1 for k in shape) < 2}
    assert {found[n] for n in vectors} <= {"adamw"}
    matrices = set(shapes) - vectors
    left = {n for n in matrices if any(fnmatch.fnmatchcase(n, glob) for glob in ADAMW[name])}
    assert {n for n in matrices if found[n] == "adamw"} == left
    idle = [glob for glob in ADAMW[name] if not any(fnmatch.fnmatchcase(n, glob) for n in shapes)]
    assert idle == []
    assert len(matrices - left) > 4


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_everywhere_each_parameter_has_one_place_and_a_reason(name):
    module = build(name)
    groups = group_parameters(module, recipe("vit/muon"))
    rows = groups.rows()
    assert [row.name for row in rows] == [n for n, p in module.named_parameters() if p.requires_grad]
    for row in rows:
        assert row.algorithm in ("muon", "adamw")
        assert f"; {row.algorithm}: " in row.reason, row
    names = [group.name for group in groups.summary()]
    assert len(set(names)) == len(names)
    assert all(group.startswith(("decay", "no_decay")) for group in names)
    # The decay decisions are those of AdamW alone.
    assert [row.weight_decay for row in rows] == [
        row.weight_decay for row in group_parameters(module, recipe("vit")).rows()
    ]


def layouts(name):
    return {info.name: info.matrix for info in snapshot_parameters(build(name)).parameters}


def test_matrices_are_read_with_outputs_first():
    gpt2 = layouts("transformers/gpt2")
    assert {m.layout for n, m in gpt2.items() if ".h." in n and n.endswith("c_fc.weight")} == {"transposed"}
    assert matrix_shape((32, 128), "transposed", 1) == (1, 128, 32)
    oss, mixtral = layouts("transformers/gpt_oss"), layouts("transformers/mixtral")
    for leaf in ("gate_up_proj", "down_proj"):
        assert oss[f"model.layers.0.mlp.experts.{leaf}"].layout == "experts_transposed"
        assert mixtral[f"model.layers.0.mlp.experts.{leaf}"].layout == "experts"
    assert matrix_shape((4, 32, 128), "experts_transposed", 1) == (4, 128, 32)
    assert matrix_shape((64, 3, 7, 7), "conv", 1) == (1, 64, 147)
    assert layouts("transformers/sam")["mask_decoder.upscale_conv1.weight"].layout == "conv_transposed"
    # A grouped convolution is as many maps as it has groups.
    grouped = layouts("timm/regnet")["s1.b1.conv2.conv.weight"]
    assert (grouped.layout, grouped.count, grouped.left) == ("conv", 3, "")


class Experts(nn.Module):
    def __init__(self, transposed, inner, hidden=8, bias=False):
        super().__init__()
        size = (lambda r, c: (4, c, r)) if transposed else (lambda r, c: (4, r, c))
        self.gate_up_proj = nn.Parameter(torch.zeros(size(2 * inner, hidden)))
        self.down_proj = nn.Parameter(torch.zeros(size(hidden, inner)))
        if bias:
            self.gate_up_proj_bias = nn.Parameter(torch.zeros(4, 2 * inner))
            self.down_proj_bias = nn.Parameter(torch.zeros(4, hidden))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inner", [5, 16])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_order_of_an_expert_stack_is_read_off_its_block(transposed, inner, bias):
    infos = {info.name: info.matrix for info in snapshot_parameters(Experts(transposed, inner, bias=bias)).parameters}
    wanted = "experts_transposed" if transposed else "experts"
    assert infos["gate_up_proj"].layout == infos["down_proj"].layout == wanted


def test_small_ones_and_what_no_rule_knows():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
            self.thin, self.row, self.long = nn.Linear(3, 64), nn.Linear(64, 1), nn.Linear(4, 513)
            self.ok = nn.Linear(4, 512)
            self.free = nn.Parameter(torch.zeros(8, 8))
            self.cube = nn.Parameter(torch.zeros(8, 8, 8))
            self.gate = nn.Linear(8, 8)
            self.moe = nn.ModuleDict(
                {"gate": nn.Linear(8, 4), "experts": nn.ModuleList(nn.Linear(8, 8) for _ in range(4))}
            )

    left = {info.name: info.matrix.left for info in snapshot_parameters(Odd()).parameters if info.role == "matrix"}
    assert left["thin.weight"] == "64 x 3 is tiny (a side below 4)"
    assert left["row.weight"] == "vector"
    assert left["long.weight"] == "513 x 4 is too long (above 128 : 1)"
    assert left["cube"] == "free-standing tensor with 3 dimensions"
    assert left["moe.gate.weight"] == "router of experts"
    kept = {name for name, why in left.items() if not why}
    assert kept == {
        "blocks.0.0.weight",
        "blocks.1.0.weight",
        "ok.weight",
        "free",
        "gate.weight",
        *(f"moe.experts.{i}.weight" for i in range(4)),
    }


@pytest.mark.parametrize("last", ["fc", "fc2", "out", "to_logits", "mixing"])
def test_the_last_layer_of_a_plain_network_is_its_head(last):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.hidden = nn.Linear(32, 32)
            self.add_module(last, nn.Linear(32, 10))

    assert algorithms(Net())[f"{last}.weight"] == "adamw"
    assert algorithms(Net())["fc1.weight"] == algorithms(Net())["hidden.weight"] == "muon"


def test_a_head_behind_a_lightning_module_and_a_tied_one():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = build("transformers/llama_tied")

    rows = {row.name: row for row in group_parameters(Wrapper(), recipe()).rows()}
    embedding = rows["model.model.embed_tokens.weight"]
    assert "model.lm_head.weight" not in rows
    assert (embedding.algorithm, embedding.weight_decay) == ("adamw", 0.0)
    assert embedding.reason.endswith("tied with model.lm_head.weight: not decayed; adamw: embedding")


def lora():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(16, 16, bias=False)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(16, 8, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(8, 16, bias=False)})

    return nn.Sequential(Layer(), Layer(), nn.Linear(16, 4))


def test_adapters_go_to_adamw():
    found = algorithms(lora())
    assert {found[n] for n in found if "lora" in n} == {"adamw"}
    assert found["0.base.weight"] == "muon"
    with pytest.raises(RecipeError, match=r"rule '\*' gives muon 5 .*such as '0.lora_A.default.weight' \(adapter"):
        group_parameters(lora(), recipe(groups=[GroupRule(match="*", algorithm="muon")]))


# ---- numbers and groups


def block():
    return nn.Sequential(
        nn.Embedding(32, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 32)
    )


def test_adamw_has_the_numbers_of_fallback():
    module = block()
    fallback = {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
    groups = group_parameters(module, recipe(fallback=fallback)).for_optimizer(module.named_parameters())
    by_name = {group["name"]: group for group in groups}
    assert list(by_name) == ["decay", "decay/adamw", "no_decay/adamw"]
    assert (by_name["decay"]["lr"], by_name["decay"]["weight_decay"], by_name["decay"]["algorithm"]) == (
        0.02,
        0.01,
        "muon",
    )
    for name, decay in (("decay/adamw", 0.2), ("no_decay/adamw", 0.0)):
        group = by_name[name]
        assert (group["algorithm"], group["lr"], group["weight_decay"]) == ("adamw", 1e-3, decay)
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)
    assert [tuple(p.shape) for p in by_name["decay/adamw"]["params"]] == [(32, 16)]


def test_units_of_the_defaults():
    original, matched = recipe("llm/muon"), recipe("llm/muon_rms")
    lrs = {row.algorithm: row.lr for row in group_parameters(block(), original).rows()}
    assert lrs == {"muon": 0.02, "adamw": 3e-4}
    rows = group_parameters(block(), matched).rows()
    assert {row.lr for row in rows} == {6e-4} and {row.weight_decay for row in rows} == {0.0, 0.1}


def test_rules_win_and_scale_what_the_algorithm_has():
    rules = [
        GroupRule(match="1.weight", algorithm="adamw", lr_scale=0.5),
        GroupRule(match="0.weight", algorithm="muon"),
        GroupRule(match="3.*", lr_scale=2.0),
    ]
    rows = {row.name: row for row in group_parameters(block(), recipe(groups=rules)).rows()}
    assert (rows["1.weight"].algorithm, rows["1.weight"].lr, rows["1.weight"].weight_decay) == ("adamw", 1.5e-4, 0.01)
    assert (rows["0.weight"].algorithm, rows["0.weight"].lr, rows["0.weight"].weight_decay) == ("muon", 0.02, 0.0)
    assert (rows["3.weight"].algorithm, rows["3.weight"].lr) == ("muon", 0.04)
    assert (rows["3.bias"].algorithm, rows["3.bias"].lr) == ("adamw", 6e-4)
    assert "adamw, as you say; your rule '1.weight': lr x 0.5, algorithm adamw" in rows["1.weight"].reason
    assert [rows[n].group for n in ("1.weight", "0.weight", "3.weight", "3.bias")] == [
        "decay/1.weight/adamw", "no_decay/0.weight", "decay/3", "no_decay/3/adamw",
    ]  # fmt: skip
    # What has no two dimensions cannot be given to it.
    with pytest.raises(
        RecipeError, match=r"rule '1\*' gives muon 1 that it does not take, such as '1.bias' \(bias, 16\)"
    ):
        group_parameters(block(), recipe(groups=[GroupRule(match="1*", algorithm="muon")]))


def test_layer_decay_reaches_both_algorithms():
    module = build("timm/vit")
    rows = group_parameters(module, recipe("vit/muon", layer_decay=0.5)).rows()
    found = {row.name: row.lr for row in rows}
    assert found["head.weight"] == 2.5e-4 and found["blocks.1.attn.qkv.weight"] == pytest.approx(1.25e-4)
    assert found["blocks.1.norm1.weight"] == found["blocks.1.attn.qkv.weight"]
    assert len({(row.group, row.algorithm, row.lr, row.weight_decay) for row in rows}) == len(
        {row.group for row in rows}
    )


def test_a_module_without_matrices_says_so():
    notes = group_parameters(nn.LayerNorm(4), recipe()).notes
    assert any("no hidden matrix" in note for note in notes)
    assert group_parameters(block(), recipe()).notes == ()


@pytest.mark.parametrize("name", ["muon", "normuon", "mars_m", "teon"])
def test_every_matrix_method_takes_the_groups(name):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.grouped = nn.Conv2d(8, 8, 3, groups=2, padding=1)
            self.up = nn.ConvTranspose2d(8, 8, 2)
            self.norm = nn.BatchNorm2d(8)
            self.experts = Experts(True, 6)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.norm(self.up(self.grouped(self.stem(x)))).mean((2, 3))
            x = torch.einsum("bh,eho->bo", x, self.experts.gate_up_proj)[:, :6]
            return self.head(torch.einsum("bi,eih->bh", x, self.experts.down_proj))

    module = Net()
    for parameter in module.experts.parameters():
        nn.init.normal_(parameter)
    kwargs = {"optimizer_kwargs": {"scale": "match_rms_adamw"}} if name == "mars_m" else {}
    resolved = recipe("llm", optimizer=name, lr=0.02, weight_decay=0.1, **kwargs)
    groups = group_parameters(module, resolved).for_optimizer(module.named_parameters())
    assert {g["name"] for g in groups} >= {"decay/blocks_2", "decay/conv_transposed", "decay/experts_transposed"}
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = build_optimizer(name, groups, lr=0.02, weight_decay=0.1, **resolved.hyperparameters)
    module(torch.randn(4, 3, 6, 6)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[n], p) for n, p in module.named_parameters())
    kernel = module.grouped.weight.detach() - before["grouped.weight"] * (1 - resolved.lr * 0.1)
    if name == "muon":
        # Each of the two groups is a matrix of its own: (4, 4 x 3 x 3), its singular values near the rate.
        values = torch.linalg.svdvals(kernel.reshape(2, 4, 36)) / 0.02
        assert ((values > 0.7) & (values < 1.25)).all()


# ---- fused weights


class Fused(nn.Module):
    """A fused QKV of timm's kind, one of GPT-2's, torch's own, and grouped queries, at two widths."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList()
        for width in (8, 16):
            block = nn.Module()
            block.qkv = nn.Linear(width, 3 * width)
            block.c_attn = Conv1D(3 * width, width)
            block.attention = nn.MultiheadAttention(width, 2)
            block.grouped = nn.Linear(width, 2 * width)
            self.blocks.append(block)
        self.head = nn.Linear(16, 4)


FUSED = [
    GroupRule(match="*.qkv.*", split_sizes="qkv"),
    GroupRule(match="*.c_attn.weight", split_sizes="qkv", lr_scale=0.5),
    GroupRule(match="*.in_proj_weight", num_heads=6),
    GroupRule(match="blocks.0.grouped.weight", split_sizes=(8, 4, 4)),
]


def test_fused_weights_are_split_where_a_rule_says_so():
    torch.manual_seed(0)
    module = Fused()
    resolved = recipe(groups=FUSED, optimizer_kwargs={"orthogonalize": "svd", "nesterov": False})
    groups = group_parameters(module, resolved)
    split = {
        g["name"]: g.get("split_sizes") or g.get("num_heads") for g in groups.for_optimizer(module.named_parameters())
    }
    assert {name: how for name, how in split.items() if how} == {
        "decay/qkv/split_8_8_8": [8, 8, 8],
        "decay/qkv/split_16_16_16": [16, 16, 16],
        "decay/c_attn.weight/transposed/split_8_8_8": [8, 8, 8],
        "decay/c_attn.weight/transposed/split_16_16_16": [16, 16, 16],
        "decay/in_proj_weight/blocks_6": 6,
        "decay/blocks.0.grouped.weight/split_8_4_4": [8, 4, 4],
    }
    reasons = {row.name: row.reason for row in groups.rows()}
    assert reasons["blocks.1.qkv.weight"].endswith("'*.qkv.*': orthogonalised in 3 parts of 16 rows")
    assert reasons["blocks.0.grouped.weight"].endswith("orthogonalised in parts of 8, 4, 4 rows")
    assert reasons["blocks.1.qkv.bias"].endswith("a group of its own")

    optimizer = build_optimizer(
        "muon", groups.for_optimizer(module.named_parameters()), lr=0.02, weight_decay=0.0, **resolved.hyperparameters
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    moved = {n: before[n] - p.detach() for n, p in module.named_parameters()}
    for part in moved["blocks.1.qkv.weight"].split(16):
        torch.testing.assert_close(torch.linalg.svdvals(part), torch.full((16,), 0.02))
    for part in moved["blocks.0.c_attn.weight"].mT.split(8):
        torch.testing.assert_close(torch.linalg.svdvals(part), torch.full((8,), 0.01))
    for part in moved["blocks.1.attention.in_proj_weight"].split(8):
        torch.testing.assert_close(torch.linalg.svdvals(part), torch.full((8,), 0.02))


def test_nothing_is_split_unasked():
    module = Fused()
    for group in group_parameters(module, recipe()).for_optimizer(module.named_parameters()):
        assert "split_sizes" not in group and "num_heads" not in group


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"match": "*.qkv.weight", "split_sizes": (8, 8, 8)}, "'blocks.1.qkv.weight' (48 x 16): split_sizes: [8, 8, 8] has a sum of 24, and it has 48 outputs"),
        ({"match": "*.grouped.weight", "split_sizes": "qkv"}, "'blocks.0.grouped.weight' (16 x 8): split_sizes: its 16 outputs are not three equal"),
        ({"match": "*.qkv.weight", "num_heads": 5}, "'blocks.0.qkv.weight' (24 x 8): num_heads: 5 does not divide its 24 outputs"),
        ({"match": "*.qkv.bias", "split_sizes": "qkv"}, "rule '*.qkv.bias' splits matrices, and those it matches all go to AdamW"),
    ],
)  # fmt: skip
def test_a_split_that_does_not_fit_names_the_parameter(rule, words):
    with pytest.raises(RecipeError) as error:
        group_parameters(Fused(), recipe(groups=[GroupRule(**rule)]))
    assert words in str(error.value)


def test_what_is_separate_already_is_not_split():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1), nn.Linear(8, 4))
    with pytest.raises(RecipeError, match=r"'1\.weight' .*its experts or groups are matrices of their own already"):
        group_parameters(module, recipe(groups=[GroupRule(match="1.weight", num_heads=2)]))


def test_snapshots_are_plain_data():
    snapshot = snapshot_parameters(build("timm/convnext"))
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot


def test_other_optimizers_are_not_routed():
    for name in ("llm", "cnn"):
        rows = group_parameters(block(), recipe(name)).rows()
        assert len({row.algorithm for row in rows}) == 1
        assert {row.group for row in rows} == {"decay", "no_decay"}
