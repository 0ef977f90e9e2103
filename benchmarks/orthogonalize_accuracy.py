"""Distance of every preset from the exact polar factor, and its largest singular value.

    python -m benchmarks.orthogonalize_accuracy > benchmarks/results/orthogonalize_accuracy.md

Made matrices with known singular values, and momentum buffers of a small language model on its own source code.
"""

import inspect
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_opt.optim.matrix.coefficients import SAFETY, largest_singular_value
from lit_opt.optim.matrix.orthogonalize import orthogonalize

WIDTH, HEADS, LENGTH = 192, 4, 64
SHAPES = ((192, 192), (192, 768), (768, 192))
SPECTRA = ("gauss", "1/i", "1/i^2", "1 to 1e-8", "rank 1")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], HEADS, WIDTH // HEADS)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(F.layer_norm(x, (WIDTH,))).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (WIDTH,)))))


def momentum_buffers(steps: int = 60) -> list[Tensor]:
    """Moving averages (0.95) of the gradients of a 3-layer byte model, after some AdamW steps."""
    torch.manual_seed(0)
    embedding, head = nn.Embedding(256, WIDTH), nn.Linear(WIDTH, 256, bias=False)
    blocks = nn.Sequential(*(Block() for _ in range(3)))
    params = [*embedding.parameters(), *blocks.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)
    text = "".join(inspect.getsource(module) for module in (inspect, statistics, torch.optim.lr_scheduler))
    data = torch.tensor(list(text.encode()))
    buffers = [torch.zeros_like(param) for param in blocks.parameters()]
    for _ in range(steps):
        starts = torch.randint(0, len(data) - LENGTH - 1, (16,))
        batch = torch.stack([data[start : start + LENGTH + 1] for start in starts])
        logits = head(F.layer_norm(blocks(embedding(batch[:, :-1])), (WIDTH,)))
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for buffer, param in zip(buffers, blocks.parameters(), strict=True):
            assert param.grad is not None
            buffer.lerp_(param.grad, 0.05)
        optimizer.step()
    return buffers


def made(rows: int, cols: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, cols, dtype=torch.float64, generator=generator)
    if kind == "gauss":
        return x
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    i = torch.arange(min(rows, cols), dtype=torch.float64)
    values = {"1/i": 1 / (1 + i), "1/i^2": 1 / (1 + i) ** 2, "1 to 1e-8": 10 ** (-8 * i / i[-1]), "rank 1": i == 0}[
        kind
    ]
    return (u * values) @ vh


def polar(x: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ vh


def report(
    label: str, of: Callable[[Tensor], Tensor], matrices: dict[str, list[Tensor]], exact: dict[int, Tensor]
) -> None:
    cells, largest = [], 0.0
    for kind, group in matrices.items():
        distances = []
        for x in group:
            result, target = of(x).double(), exact[id(x)]
            distances.append(((result - target).norm() / target.norm()).item())
            largest = max(largest, torch.linalg.matrix_norm(result, 2).item())
        cells.append("" if kind == "rank 1" else f"{statistics.median(distances):.3f}")
    print(f"| {label} | {' | '.join(cell for cell in cells if cell)} | {largest:.3f} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    matrices: dict[str, list[Tensor]] = {"momentum": momentum_buffers()}
    for kind in SPECTRA:
        matrices[kind] = [made(*shape, kind).float() for shape in SHAPES]
    exact = {id(x): polar(x) for group in matrices.values() for x in group}
    print("# Accuracy of the orthogonalisation\n")
    print("|O - P|_F / |P|_F from the exact polar factor P (float64 decomposition); medians. momentum: 12 buffers of a")
    print(
        "3-layer byte-level GPT (width 192) after 60 steps. The others: 192 x 192, 192 x 768 and 768 x 192 matrices with"
    )
    print("those singular values. The last column is the largest singular value over all of them and over rank-1 ones.")
    print(f"torch {torch.__version__}, CPU; the paths are those that `orthogonalize` takes.\n")
    print("| preset, steps, dtype | momentum | " + " | ".join(SPECTRA[:-1]) + " | largest |")
    print("|" + "---|" * (len(SPECTRA) + 2))
    muon = torch.optim._muon._zeropower_via_newtonschulz  # type: ignore[attr-defined]
    report("torch.optim.Muon (bfloat16)", lambda x: muon(x, (3.4445, -4.7750, 2.0315), 5, 1e-7), matrices, exact)
    for preset in SAFETY:
        for steps in (5, 6, 8):
            for dtype in ("float32", "bfloat16"):
                if largest_singular_value(preset, steps) <= 1.22 and (steps == 5 or preset.startswith("polar")):
                    report(
                        f"{preset} {steps} {dtype}",
                        lambda x, p=preset, s=steps, d=dtype: orthogonalize(x, p, s, d),  # type: ignore[misc]
                        matrices,
                        exact,
                    )


if __name__ == "__main__":
    main()
