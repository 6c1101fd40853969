"""`axnet bench`: time the layers on this machine."""

from __future__ import annotations

import csv
import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from axnet.cli.options import writable_file


class Device(str, Enum):
    """Where to measure."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class DType(str, Enum):
    """Types of the layers."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


def bench(
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File for the record; .json holds everything, .csv the times alone."),
    ] = None,
    task: Annotated[str, typer.Option(help="Tasks, comma-separated: a3, a3+mlp, pwap1, pwap14.")] = "",
    mode: Annotated[str, typer.Option(help="Modes, comma-separated: eval, training.")] = "",
    shape: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Shapes N,C,H,W of the features; may be repeated."),
    ] = None,
    form: Annotated[str, typer.Option(help="Forms, comma-separated: axnet, axnet-compile, eager, compile, peers.")] = (
        "axnet,eager,peers"
    ),
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each form of each case.")] = 0.5,
    device: Annotated[Device, typer.Option(help="cuda by default where torch has a GPU.")] = Device.auto,
    dtype: Annotated[DType, typer.Option(help="Type of the features and weights.")] = DType.float32,
    passes: Annotated[bool, typer.Option("--passes", help="Also each kernel on X of 64 Mi elements.")] = False,
) -> None:
    """Time A3 and PWAP against eager PyTorch, torch.compile (--form ...,compile) and the peers' published form.

    Every form's numbers are compared with eager's before a time is taken. GB/s counts the bytes that cannot be avoided;
    "floor" is the time they need at the bandwidth of a copy, as a share of the time taken. On a CPU the process keeps
    freed memory for its next tensors (docs/performance.md, "Memory"), and --passes measures in fresh memory too; on a
    GPU device events take the time, and the calls go around so many copies of X that no cache holds it.
    """
    if out is not None:
        writable_file(out, "--out")
    import torch

    from axnet.bench import FORMS, SHAPES, TASKS, Record, copy_bandwidth, run_all, summary
    from axnet.bench.cases import MODES
    from axnet.bench.measure import pass_bandwidths, saved_share
    from axnet.memory import keep_freed_memory
    from axnet.report import environment

    forms = _chosen("form", form, FORMS)
    if "axnet" not in forms:
        raise ValueError(f"form is {form!r}, expected axnet among the forms, to compare with.")
    shapes = tuple(_shape(text) for text in shape) if shape else SHAPES

    def show(r: Record) -> None:
        size = "x".join(map(str, r.shape))
        typer.echo(
            f"{r.task:7} {r.mode:9} {size:14} {r.layout:14} {r.form:13} {r.median:10.3f} "
            f"{r.gigabytes_per_second:7.1f} {r.floor_share:6.0%}"
        )

    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', and torch finds no GPU; expected 'cpu' here.")
    place = "cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype.value)
    extra: dict[str, Any] = {"device": place, "dtype": dtype.value}
    if place == "cpu":
        if passes:
            extra["passes in fresh memory"] = pass_bandwidths(copy_bandwidth(), dtype=kind)
        extra["freed memory is kept"] = keep_freed_memory()
    copy = copy_bandwidth(device=place)
    if passes:
        extra["passes"] = pass_bandwidths(copy, device=place, dtype=kind)
        extra["saved"] = {"x".join(map(str, s)): saved_share(s) for s in SHAPES}
        for title in [t for t in ("passes in fresh memory", "passes") if t in extra]:
            typer.echo(f"{title}: share of a copy's {copy / 1e9:.1f} GB/s")
            for name, shares in extra[title].items():
                typer.echo(f"  {name:17} " + "  ".join(f"{layout} {share:.0%}" for layout, share in shares.items()))
    typer.echo(
        f"{'task':7} {'mode':9} {'shape':14} {'layout':14} {'form':13} {'median ms':>10} {'GB/s':>7} {'floor':>6}"
    )
    options: dict[str, Any] = {"shapes": shapes, "forms": forms, "seconds": seconds, "say": show}
    options |= {"device": place, "dtype": kind}
    records = list(run_all(tasks=_chosen("task", task, TASKS), modes=_chosen("mode", mode, MODES), **options))
    table = summary(records)
    typer.echo("\naxnet is faster than               mean  least")
    for (name, way, other), ratio in table.items():
        typer.echo(f"  {name:7} {way:9} {other:13} {ratio['mean']:6.2f}x {ratio['least']:5.2f}x")
    if out is None:
        return
    from axnet.data.files import replacing

    with replacing(out) as partial:
        if out.suffix == ".csv":
            with partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(records[0].to_dict()))
                writer.writeheader()
                writer.writerows(r.to_dict() for r in records)
        else:
            content = {
                "environment": environment(),
                "copy_gigabytes_per_second": copy / 1e9,
                "seconds": seconds,
                "summary": [{"task": t, "mode": m, "form": f, **ratio} for (t, m, f), ratio in table.items()],
                **extra,
                "records": [r.to_dict() for r in records],
            }
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    typer.echo(str(out))


def _chosen(name: str, text: str, accepted: tuple[str, ...]) -> tuple[str, ...]:
    if not text:
        return accepted
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in accepted:
            raise ValueError(f"{name} is {word!r}, expected one of {accepted}.")
    return words


def _shape(text: str) -> tuple[int, int, int, int]:
    parts = text.replace("x", ",").split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"shape is {text!r}, expected four positive numbers N,C,H,W.")
    n, c, h, w = map(int, parts)
    return n, c, h, w
