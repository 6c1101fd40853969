"""nn.SyncBatchNorm inside the attention modules: two processes with parts of a batch are one process with all of it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from opcases import BACKENDS, DEVICE
from torch import Tensor, nn

from axnet.nn import PWAP, AnatomyAwareAttention, MaskedAttention
from axnet.nn.masked_attention import average_heads

pytestmark = [
    pytest.mark.skipif(DEVICE != "cpu", reason="the processes share a CPU"),
    pytest.mark.skipif(sys.platform == "win32", reason="gloo by a file store"),
]
CASES = {
    "mean": ({}, (2, 2)),
    "concat": ({"fusion": "concat"}, (2, 2)),
    "uneven": ({"fusion": "concat"}, (3, 1)),
    "empty": ({}, (4, 0)),
    "one image": ({}, (3, 1)),
}


def module_of(case: str, backend: str) -> AnatomyAwareAttention:
    torch.manual_seed(0)
    module = AnatomyAwareAttention(4, 2, dropout=0.0, backend=backend, dtype=torch.float64, **CASES[case][0])
    nn.init.normal_(module.norm.weight, 1.0, 0.1)
    if case == "uneven":
        module.norm.momentum = None
    return module


def inputs_of(case: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, 4, 5, 6, dtype=torch.float64)
    x[2:] += 5
    side = (1, 1) if case == "one image" else (5, 6)
    channels = 8 if CASES[case][0] else 4
    return x[:, :, : side[0], : side[1]], torch.rand(4, 2, *side).double(), torch.randn(4, channels, *side).double()


def step(module: nn.Module, x: Tensor, mask: Tensor, d: Tensor) -> dict[str, Tensor]:
    """Forward and backward; a second forward, for the cumulative average."""
    x, mask = x.clone().requires_grad_(), mask.clone().requires_grad_()
    z = module(x, mask)
    (z * d).sum().backward()
    with torch.no_grad():
        module(x * 2, mask)
    named = {name: p.grad for name, p in module.named_parameters()}
    return {"z": z.detach(), "x": x.grad, "mask": mask.grad, **named, **dict(module.named_buffers())}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for backend in BACKENDS:
        for case, (_, parts) in CASES.items():
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module_of(case, backend))
            assert type(module.norm) is nn.SyncBatchNorm
            own = slice(0, parts[0]) if rank == 0 else slice(parts[0], 4)
            found[backend, case] = step(module, *(t[own] for t in inputs_of(case)))
        found[backend, "others"] = others(backend, slice(2 * rank, 2 * rank + 2), synchronised=True)
    found["groups"] = groups(rank)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def groups(rank: int) -> dict[str, Tensor]:
    """Normalisations over a part of the processes: all of them by name, and the first alone."""
    both, first = dist.new_group([0, 1]), dist.new_group([0])
    own, out = slice(2 * rank, 2 * rank + 2), {}
    x, mask, _ = inputs_of("mean")
    for backend in BACKENDS:
        for name, group in {"both": both, "first": first}.items():  # to the second process, first is no group at all
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module_of("mean", backend), group)
            out[f"{backend} {name}"] = module(x[own], mask[own]).detach()
            out[f"{backend} {name} mean"] = module.norm.running_mean
    return out


def others(backend: str, own: slice, *, synchronised: bool) -> dict[str, Tensor]:
    """The other ways into the same normalisation, without affine parameters, then one under running statistics."""
    torch.manual_seed(2)
    x, mask, _ = inputs_of("mean")
    module, heads = module_of("mean", backend), [MaskedAttention(4, dropout=0.0, backend=backend).double()] * 2
    module.norm = nn.BatchNorm2d(4, affine=False, dtype=torch.float64)
    if synchronised:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        heads = [nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(heads[0]))] * 2
    pooling = PWAP(4, 3, backend=backend).double()
    with torch.no_grad():
        out = {
            "average": module.average(x[own], mask[own]),
            "pool": module.pool(x[own], mask[own], pooling)[0],
            "heads": average_heads(heads, x[own], mask[own]),
        }
        module.eval()
        alone = module if own.start == 0 else copy.deepcopy(module)  # no process waits for another in evaluation
        return {**out, "eval": alone.average(x[own], mask[own])}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    path = os.pathsep.join(sys.path)
    command, environment = [sys.executable, __file__], {**os.environ, "PYTHONPATH": path}
    running = [subprocess.Popen([*command, str(rank), str(folder)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def close(name: str, actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(parts, backend, case):
    whole = step(module_of(case, backend), *inputs_of(case))
    one, two = (part[backend, case] for part in parts)
    for name, expected in whole.items():
        if name in ("z", "x", "mask"):
            actual = torch.cat((one[name], two[name]))
        elif name.startswith("norm.") and name.split(".")[1] in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
            actual = one[name]
        else:  # each process keeps its part of a parameter's gradient; DistributedDataParallel averages
            actual = one[name] + two[name]
        torch.testing.assert_close(
            actual, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_way_into_the_normalisation(parts, backend):
    whole = others(backend, slice(0, 4), synchronised=False)
    for name, expected in whole.items():
        actual = torch.cat([part[backend, "others"][name] for part in parts])
        torch.testing.assert_close(
            actual, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_of_the_processes(parts, backend):
    x, mask, _ = inputs_of("mean")
    whole = module_of("mean", backend)
    close("both", torch.cat([part["groups"][f"{backend} both"] for part in parts]), whole(x, mask).detach())
    for rank, part in enumerate(parts):
        close("mean", part["groups"][f"{backend} both mean"], whole.norm.running_mean)
        alone, own = module_of("mean", backend), slice(2 * rank, 2 * rank + 2)
        close("first", part["groups"][f"{backend} first"], alone(x[own], mask[own]).detach())
        close("mean", part["groups"][f"{backend} first mean"], alone.norm.running_mean)


def test_alone_it_is_a_batch_normalisation():
    plain = module_of("mean", "reference")
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    x, mask, _ = inputs_of("mean")
    assert torch.equal(sync(x, mask), plain(x, mask))


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
