"""What the processes of a test do; they import this module by its name, so it holds no tests.

together(work, folder, *arguments) runs work(rank, folder, *arguments) in two processes that gloo connects over the
loopback device, and returns what each returned.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

WORLD = 2


def together(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.spawn(_enter, (port, work, folder, arguments), nprocs=WORLD)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _enter(rank: int, port: int, work: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    # as torchrun sets them, which is also how Lightning learns that the processes are there already
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.save(work(rank, folder, *arguments), folder / f"rank-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


class Features(nn.Module):
    """A backbone without batch normalisation of its own, which torch synchronises on GPUs only."""

    channels = (6, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.Tanh())

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.first(image)
        return [first, self.second(first)]


def network(fusion: str) -> nn.Module:
    """An Anatomy-XNet in float64 without dropout, the same in every process."""
    from axnet.models import AnatomyXNet

    torch.manual_seed(0)
    return AnatomyXNet(3, backbone=Features(), reduction=0.5, dropout=0.0, fusion=fusion).double()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, masks and labels of four films, of which the second two are brighter than the first."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 1, 20, 20, generator=generator, dtype=torch.float64)
    image[2:] += 3
    mask = torch.rand(4, 2, 20, 20, generator=generator, dtype=torch.float64)
    return image, mask, torch.randint(0, 2, (4, 3), generator=generator).double()


def whole(value: Tensor | None) -> Tensor | None:
    return value.full_tensor() if isinstance(value, DTensor) else value


def step(model: nn.Module, image: Tensor, mask: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Loss, gradients and buffers of one training step."""
    loss = nn.functional.binary_cross_entropy_with_logits(model(image, mask).logits, label)
    loss.backward()
    found = {f"gradient of {name}": whole(parameter.grad) for name, parameter in model.named_parameters()}
    return {"loss": loss.detach(), **found, **dict(model.named_buffers())}


def computed(rank: int, folder: Path, fusions: list[str], scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """By fusion a step on one half of the batch, losses and gradients averaged, where each process has a copy of the
    parameters and where it has a share (with the state of that model and of its share); and MeanAUROC of unequal parts.
    """
    from axnet.train import MeanAUROC
    from axnet.train.sharding import share_out

    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    part = slice(rank * 2, rank * 2 + 2)
    for fusion in fusions:
        # DistributedDataParallel, which does the averaging on GPUs, refuses SyncBatchNorm on a CPU
        model = nn.SyncBatchNorm.convert_sync_batchnorm(network(fusion))
        found[fusion] = step(model, *(t[part] for t in batch()))
        for name, value in found[fusion].items():
            if name == "loss" or name.startswith("gradient"):
                dist.all_reduce(value)
                value /= WORLD
        shared = nn.SyncBatchNorm.convert_sync_batchnorm(network(fusion).to(memory_format=torch.channels_last))
        share_out(shared, init_device_mesh("cpu", (WORLD,)))
        shared.load_state_dict(network(fusion).state_dict())
        found[f"{fusion}, shared"] = step(shared, *(t[part] for t in batch()))  # gradients are averaged on the way
        dist.all_reduce(found[f"{fusion}, shared"]["loss"].div_(WORLD))
        found[f"{fusion}, state"] = shared.state_dict()
        found[f"{fusion}, share"] = sum(parameter.to_local().numel() for parameter in shared.parameters())
    metric = MeanAUROC()
    rows = slice(0, 11) if rank == 0 else slice(11, None)
    for group in zip(scores[rows].split(3), labels[rows].split(3), strict=True):
        metric.update(*group)
    return {**found, "metric": float(metric.compute())}


def train(rank: int, folder: Path, config: Any, sets: Any) -> dict[str, Any]:
    """One run of axnet.train.fit: what it returned, which images it saw, and which files this process wrote in out."""
    from axnet.train import fit, module

    written: set[str] = set()

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = Path(os.path.abspath(arguments[0]))
            if path.is_relative_to(config.out):
                written.add(path.relative_to(config.out).as_posix())

    sys.addaudithook(listen)
    seen: list[int] = []
    plain = module.ClassifierModule.training_step

    def noted(self: Any, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        seen.extend(batch["index"].tolist())
        return plain(self, batch, batch_idx)

    module.ClassifierModule.training_step = noted  # type: ignore[method-assign]
    result = fit(config, *sets)
    return {
        "state": result.model.state_dict(),
        "val_auc": result.val_auc,
        "steps": result.steps,
        "seen": seen,
        "written": sorted(written),
    }
