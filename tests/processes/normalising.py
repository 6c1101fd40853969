"""What the processes of test_synchronised.py do."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from axnet.train.synchronised import synchronised

CASES = ("plain", "cumulative", "not affine", "one dimension", "float64")


def network(case: str) -> nn.Sequential:
    torch.manual_seed(0)
    if case == "one dimension":
        return nn.Sequential(nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.Tanh(), nn.Conv1d(5, 2, 3))
    options = {"cumulative": {"momentum": None}, "not affine": {"affine": False}}.get(case, {})
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, **options), nn.Tanh(), nn.Conv2d(5, 2, 3))
    return net.double() if case == "float64" else net


def images(case: str) -> Tensor:
    """Six images of different brightness, of which one process takes two and the other four."""
    shape = (6, 2, 12) if case == "one dimension" else (6, 2, 12, 9)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3
    drawn[:2] *= 4
    return drawn if case == "float64" else drawn.float()


def step(net: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """Outputs of two training steps, gradients of the sum of their squares, buffers, and what eval mode then gives."""
    outputs = [net(x), net(2 * x)]
    sum((output**2).sum() for output in outputs).backward()
    found = {f"gradient of {name}": parameter.grad for name, parameter in net.named_parameters()}
    found |= {name: value.clone() for name, value in net.named_buffers()}
    return {"output": torch.cat(outputs).detach(), **found, "eval": net.eval()(x).detach()}


def work(rank: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    dist.init_process_group("gloo")
    return {case: half(rank, case) for case in CASES}


def half(rank: int, case: str) -> dict[str, Tensor]:
    net = network(case)
    held = [id(value) for value in net.state_dict(keep_vars=True).values()]
    synchronised(net)
    assert [id(value) for value in net.state_dict(keep_vars=True).values()] == held
    found = step(net, images(case)[:2] if rank == 0 else images(case)[2:])
    for name, value in found.items():
        if name.startswith("gradient"):
            dist.all_reduce(value)
    return found
