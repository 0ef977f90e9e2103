from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.param_groups.snapshot import clean_name, snapshot_parameters


class Tied(nn.Module):
    def __init__(self, head_first: bool) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(4, 10, bias=False)
            self.embed = nn.Embedding(10, 4)
        else:
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.body = nn.Linear(4, 4)


def test_plain_data_that_pickles_and_copies():
    snapshot = snapshot_parameters(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot == copy.deepcopy(snapshot)
    for info in snapshot.parameters:
        for value in (info.name, info.shape, info.owner, info.role, info.why, info.trainable, info.aliases):
            assert type(value) in (str, tuple, bool)
    with pytest.raises(AttributeError):
        snapshot.parameters[0].role = "norm"  # type: ignore[misc]


@pytest.mark.parametrize(("head_first", "name"), [(False, "embed.weight"), (True, "head.weight")])
def test_a_tied_head_follows_its_embedding_in_both_orders(head_first, name):
    info = snapshot_parameters(Tied(head_first)).parameters[0]
    other = {"embed.weight": "head.weight", "head.weight": "embed.weight"}[name]
    assert (info.name, info.aliases, info.role) == (name, (other,), "embedding")
    assert "tied with" in info.why and other in info.why


def test_shared_modules_count_once():
    block = nn.Linear(4, 4)
    infos = snapshot_parameters(nn.Sequential(block, nn.ReLU(), block)).parameters
    assert [(i.name, i.aliases) for i in infos] == [("0.weight", ("2.weight",)), ("0.bias", ("2.bias",))]


def test_parameter_count_leaves_out_embeddings_and_frozen_ones():
    model = Tied(False)
    assert snapshot_parameters(model).parameter_count == 20
    model.body.bias.requires_grad_(False)
    assert snapshot_parameters(model).parameter_count == 16
    assert snapshot_parameters(model).parameters[-1].trainable is False


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("_fsdp_wrapped_module.net.0.weight", "net.0.weight"),
        ("net._orig_mod._fsdp_wrapped_module.weight", "net.weight"),
        ("a._checkpoint_wrapped_module.b.bias", "a.b.bias"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("weight", "weight"),
    ],
)
def test_wrapper_parts_are_stripped_and_nothing_else(raw, clean):
    assert clean_name(raw) == clean


def test_compiled_and_checkpointed_submodules_keep_their_names_and_owners():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    expected = [(i.name, i.owner, i.role) for i in snapshot_parameters(plain).parameters]
    plain[0] = torch.compile(plain[0])  # type: ignore[assignment]
    plain[2] = checkpoint_wrapper(plain[2])
    assert any("_orig_mod" in n for n, _ in plain.named_parameters())
    for module in (plain, torch.compile(plain)):
        assert [(i.name, i.owner, i.role) for i in snapshot_parameters(module).parameters] == expected  # type: ignore[arg-type]


def test_a_module_beside_its_compiled_self():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)
            self.fast = torch.compile(self.net)

    infos = snapshot_parameters(Both()).parameters
    assert [(i.name, i.aliases) for i in infos] == [("net.weight", ("fast.weight",)), ("net.bias", ("fast.bias",))]


def test_what_the_model_lists_is_prefixed_by_its_path():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        def no_weight_decay(self):
            return {"table.weight", "missing"}

    class Swinlike(nn.Module):
        def __init__(self):
            super().__init__()
            self.cpb_mlp, self.mlp = nn.Linear(2, 2), nn.Linear(2, 2)

        def no_weight_decay_keywords(self):
            return {"cpb_"}

    class Globs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def no_weight_decay(self):
            return ["a.*"]

    module = nn.ModuleDict({"x": Backbone(), "y": Swinlike(), "z": torch.compile(Globs())})  # type: ignore[dict-item]
    listed = {i.name: i.listed for i in snapshot_parameters(module).parameters if i.listed}
    assert listed == {
        "x.table.weight": "Backbone.no_weight_decay()",
        "y.cpb_mlp.weight": "Swinlike.no_weight_decay_keywords()",
        "y.cpb_mlp.bias": "Swinlike.no_weight_decay_keywords()",
        "z.a.weight": "Globs.no_weight_decay()",
        "z.a.bias": "Globs.no_weight_decay()",
    }


def test_lazy_modules_are_refused_until_they_have_a_shape():
    module = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))
    with pytest.raises(RecipeError, match=r"'0\.weight'.*Run one batch"):
        snapshot_parameters(module)
    module(torch.zeros(1, 3))
    assert snapshot_parameters(module).parameters[0].shape == (4, 3)


def test_a_flat_parameter_is_refused_with_the_remedy():
    module = nn.Module()
    module.register_parameter("_flat_param", nn.Parameter(torch.zeros(10)))
    with pytest.raises(RecipeError, match="use_orig_params=True"):
        snapshot_parameters(module)


def test_zero3_shapes_are_read_from_deepspeeds_attribute():
    module = nn.Linear(4, 4)
    object.__setattr__(module.weight, "ds_shape", torch.Size((4, 4)))
    module.weight.data = torch.empty(0)
    assert snapshot_parameters(module).parameters[0].shape == (4, 4)


def test_meta_device():
    with torch.device("meta"):
        module = nn.TransformerEncoderLayer(8, 2)
    assert snapshot_parameters(module) == snapshot_parameters(nn.TransformerEncoderLayer(8, 2))
