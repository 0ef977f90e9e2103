"""Bytes moved and operations of a Muon step on Llama shapes, on 8 to 512 devices: by the simulator, on no device.

    python -m benchmarks.sharded_scaling

writes benchmarks/results/sharded_scaling.md. tests/optim/matrix/test_sharded.py checks the simulator
(lit_opt/optim/matrix/traffic.py) to the byte against what two and four processes move.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import Parameter

from lit_opt.optim import Muon
from lit_opt.optim.matrix.cost import step_flops
from lit_opt.optim.matrix.traffic import Traffic, ddp_traffic, sharded_traffic

RESULT = Path(__file__).parent / "results" / "sharded_scaling.md"
# Width, width of keys and values, width of the MLP, layers.
MODELS = {
    "1 B (Llama 3.2)": (2048, 512, 8192, 16),
    "7 B (Llama 2)": (4096, 4096, 11008, 32),
    "70 B (Llama 2)": (8192, 1024, 28672, 80),
}
DEVICES = (8, 16, 32, 64, 128, 256, 512)
NODE = 8


def matrices(width: int, keys: int, mlp: int, layers: int) -> Muon:
    shapes = [(width, width), (keys, width), (keys, width), (width, width), (mlp, width), (mlp, width), (width, mlp)]
    return Muon([Parameter(torch.empty(shape, device="meta")) for shape in shapes * layers], lr=0.02)


def cells(ranks: list[Traffic]) -> str:
    most = max(one.flops for one in ranks)
    uneven = most * len(ranks) / sum(one.flops for one in ranks)
    idle = sum(one.flops == 0 for one in ranks)
    sent, received = max(one.sent for one in ranks), max(one.received for one in ranks)
    return f"{sent / 1e9:.2f} | {received / 1e9:.2f} | {most / 1e12:.1f} | {uneven:.2f} | {idle}"


def main() -> None:
    """Write the table."""
    lines = [
        "# A Muon step on many devices, on paper",
        "",
        "Written by `python -m benchmarks.sharded_scaling`: counted from shapes alone, on no device. The simulator agrees "
        "to the byte with two and four CPU processes (tests/optim/matrix/test_sharded.py). **Not run on a GPU.**",
        "",
        "The hidden matrices of Llama, float32 weights, polar_express with 5 steps in bfloat16, as on CUDA. sent, "
        "received: GB of the process that sends or receives most, in one step. TFLOPs: of the process that computes most, "
        "by the standard iteration. uneven: its work over the mean. idle: processes that own no matrix. Whole matrices "
        "are orthogonalised by one process each, so with more devices than matrices some own none.",
        "",
        "For comparison, FSDP2 itself sends and receives about 6 bytes a number in each step of one batch (two "
        "all-gathers and a reduce-scatter in bfloat16), whatever the number of devices: 5.8 GB, 38.9 GB and 411 GB for "
        "these matrices. The step's exchange falls with the number of devices: a process sends its part of each matrix "
        "in float32 and gets it back in bfloat16. Under DDP each result goes to all, in bfloat16, and all send as much as "
        "the one with most, so with more devices than matrices of a bucket much of it is padding. HSDP: 8 shards, "
        "replicas share the work, and an owner sends to all of them.",
        "",
    ]
    for model, sizes in MODELS.items():
        optimizer = matrices(*sizes)
        params = optimizer.param_groups[0]["params"]
        numbers = sum(param.numel() for param in params)
        lines += [
            f"## {model}: {len(params)} matrices, {numbers / 1e9:.2f} billion numbers, "
            f"{step_flops(optimizer) / 1e12:,.0f} TFLOPs a step in all",
            "",
            "| devices | strategy | sent GB | received GB | TFLOPs | uneven | idle |",
            "|---:|---|---:|---:|---:|---:|---:|",
        ]
        for devices in DEVICES:
            lines.append(f"| {devices} | DDP | {cells(ddp_traffic(optimizer, devices, cuda=True))} |")
            lines.append(f"| {devices} | FSDP2 | {cells(sharded_traffic(optimizer, (devices,), cuda=True))} |")
            if devices > NODE:
                mesh = (devices // NODE, NODE)
                lines.append(
                    f"| {devices} | HSDP {mesh[0]} x {NODE} | {cells(sharded_traffic(optimizer, mesh, cuda=True))} |"
                )
        lines.append("")
    RESULT.write_text("\n".join(lines))
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
