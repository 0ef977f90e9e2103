"""QK-clip against numbers from the published formula."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_opt.errors import RecipeError
from lit_opt.optim.matrix.qk_clip import qk_clip_, qk_clip_latent_, qk_clip_modules

NUMBERS = json.loads((Path(__file__).parents[2] / "fixtures" / "matrix" / "qk_clip_formula.json").read_text())


def tensor(part: str, key: str) -> torch.Tensor:
    return torch.tensor(NUMBERS[part][key], dtype=torch.float64)


def logits() -> torch.Tensor:
    return torch.tensor(NUMBERS["max_logits"], dtype=torch.float64)


def test_heads():
    query, key = tensor("mha", "Wq"), tensor("mha", "Wk")
    gamma = qk_clip_(query, key, logits(), threshold=NUMBERS["tau"], alpha=NUMBERS["alpha"])
    assert torch.allclose(gamma, torch.tensor(NUMBERS["gamma"], dtype=torch.float64), atol=1e-15)
    assert torch.allclose(query, tensor("mha", "Wq_after"), atol=1e-14)
    assert torch.allclose(key, tensor("mha", "Wk_after"), atol=1e-14)


def test_latent_attention():
    query, key_value, sizes = tensor("mla", "Wq"), tensor("mla", "Wkv"), NUMBERS["mla"]
    qk_clip_latent_(
        query, key_value, logits(), content_dim=sizes["qk_nope"], rotary_dim=sizes["qk_rope"], value_dim=sizes["v"]
    )
    assert torch.allclose(query, tensor("mla", "Wq_after"), atol=1e-14)
    assert torch.allclose(key_value, tensor("mla", "Wkv_after"), atol=1e-14)


class Attention(nn.Module):
    """Four query heads of 3, two key heads; it exposes its largest logits."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(12, 12), nn.Linear(12, 6)
        self.max_attention_logits = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.q_proj(x).view(-1, 4, 3).transpose(0, 1)
        key = self.k_proj(x).view(-1, 2, 3).transpose(0, 1).repeat_interleave(2, dim=0)
        logits = query @ key.mT
        self.max_attention_logits = logits.detach().flatten(1).amax(dim=1)
        return logits


def test_the_largest_logit_of_grouped_heads_is_the_threshold_afterwards():
    torch.manual_seed(0)
    model, x = nn.Sequential(Attention()), torch.randn(20, 12)
    before = model(x).detach()
    top = before.flatten(1).amax(dim=1)
    threshold = float(top.view(2, 2).amax(dim=1).min()) / 2
    gamma = qk_clip_modules(model, threshold=threshold)["0"]
    after = model(x)
    assert torch.allclose(after.flatten(1).amax(dim=1).view(2, 2).amax(dim=1), torch.full((2,), threshold), rtol=1e-4)
    assert torch.allclose(after, before * gamma.repeat_interleave(2)[:, None, None], rtol=1e-3, atol=1e-5)
    assert torch.allclose(qk_clip_modules(model, threshold=2 * threshold)["0"], torch.ones(2))


def test_refusals_change_nothing():
    query, key = torch.ones(4, 2), torch.ones(4, 2)
    for wrong in (torch.ones(3), torch.ones(2, 2), torch.tensor([500.0, torch.nan])):
        with pytest.raises(RecipeError, match="max_logits"):
            qk_clip_(query, key, wrong)
    with pytest.raises(RecipeError, match="no part has max_attention_logits"):
        qk_clip_modules(nn.Linear(2, 2))
    attention = Attention()
    del attention.k_proj
    with pytest.raises(RecipeError, match="q_proj and k_proj"):
        qk_clip_modules(attention)
    assert torch.equal(query, torch.ones(4, 2)) and torch.equal(key, torch.ones(4, 2))
