"""`axnet prepare`: pack a data set for fast training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from axnet.cli.options import Data, Quiet, Root, Seed, SegmenterFile, Views, report_failed, writable_folder
from axnet.data.sets import DEFAULT


def prepare(
    out: Annotated[Path, typer.Option(help="Folder for the packed films.")],
    data: Data = DEFAULT,
    root: Root = None,
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Splits to pack, comma-separated; without it those that the set trains and is measured on."),
    ] = None,
    views: Views = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the packed films in pixels.")] = 512,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep films as they are: size, grey values, 8 or 16 bits.")
    ] = False,
    masks: Annotated[
        str, typer.Option(help="Lungs and heart: segmenter, none, or a mask table (axnet segment predict, CheXmask).")
    ] = "segmenter",
    segmenter: SegmenterFile = None,
    device: Annotated[str, typer.Option(help="Where the segmenter computes: cpu, cuda, cuda:1 ...")] = "cpu",
    train_images: Annotated[int, typer.Option(min=2, help="Phantoms to train on (--data phantom).")] = 2500,
    test_images: Annotated[int, typer.Option(min=2, help="Phantoms to test on (--data phantom).")] = 2000,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Processes; 0 for none besides this one. Without it, all cores."),
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Pack films, labels and anatomy masks into a folder that fit, evaluate and predict take as --root.

    A run that was stopped goes on with the shards that it lacks. Films that cannot be read are listed at the end, and
    the exit code is then 1; started again, the command tries them again.
    """
    from axnet.progress import Progress
    from axnet.train import DataConfig
    from axnet.train.packing import pack_options, processors
    from axnet.train.packing import prepare as pack

    writable_folder(out, "--out")
    source = DataConfig(
        data=data,
        root=root,
        seed=seed,
        train_images=train_images,
        test_images=test_images,
        views=None if views is None else tuple(views.split(",")),
    )
    packer, drawn_by = pack_options(source, None if keep else size, masks, segmenter, device)
    done = pack(
        source,
        out,
        packer,
        splits=None if split is None else tuple(split.split(",")),
        masks=drawn_by,
        workers=processors() if workers is None else workers,
        progress=Progress(typer.echo, bars=not quiet),
    )
    note = f", {len(done.failed)} failed" if done.failed else ""
    typer.echo(f"{done.films} films packed{note}: {out}")
    report_failed([(Path(name), reason) for name, reason in done.failed])
