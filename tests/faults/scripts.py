"""What the processes of the fault tests do: python scripts.py NAME ARGUMENTS. Some of them are killed on the way."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def die() -> None:
    """As the kernel's out-of-memory killer does it: nothing is cleaned up, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """function, whose call-th call, counted from 1, ends the process when it has done its work."""
    calls = 0

    def run(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        result = function(*arguments, **options)
        calls += 1
        if calls == call:
            die()
        return result

    return run


def fit(out: str, losses: str, epochs: str, resume: str, kill: str, root: str = "") -> None:
    """A run that notes the loss of every step; kill: "", "step N", or "save N" for the N-th checkpoint half written.

    root: packed films, "" for phantoms.
    """
    from axnet.models import Preprocessing
    from axnet.train import DataConfig, FitConfig, module, open_part
    from axnet.train import fit as train

    plain = module.ClassifierModule.training_step
    log = Path(losses).open("a")  # noqa: SIM115

    def noted(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = plain(self, batch, batch_idx)
        print(self.global_step, repr(loss.item()), file=log, flush=True)
        return loss

    module.ClassifierModule.training_step = noted  # type: ignore[method-assign]
    what, _, number = kill.partition(" ")
    if what == "step":
        module.ClassifierModule.training_step = dying(noted, int(number))  # type: ignore[method-assign]
    elif what == "save":
        opened: list[str] = []

        def listen(event: str, arguments: tuple[Any, ...]) -> None:
            # Lightning writes to a temporary file and renames it
            if event == "os.rename" and str(arguments[1]).endswith("last.ckpt"):
                opened.append(str(arguments[1]))
                if len(opened) == int(number):
                    die()

        sys.addaudithook(listen)
    films = DataConfig(root=root) if root else DataConfig(train_images=48, workers=0)
    data = open_part(films, "train", Preprocessing(size=32))
    config = FitConfig(
        out=out,
        epochs=int(epochs),
        batch_size=8,
        accelerator="cpu",
        progress=False,
        schedule="constant",
        resume=resume == "resume",
        options={"backbone": "tiny", "reduction": 0.25},
    )
    train(config, *data.split_by_patient(0.25))


def command(module: str, name: str, call: str, *arguments: str) -> None:
    """`axnet ARGUMENTS`, killed after the call-th call of module.name; call 0 for a run that ends."""
    import importlib

    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, last, dying(getattr(owner, last), int(call)))
    sys.argv = ["axnet", *arguments]
    from axnet.cli import main

    main()


def forked(calls: str) -> None:
    """Each of these calls (a JSON list of lists) in a process forked from this one, which has imported all."""
    import json

    from axnet.cli import app, predict  # noqa: F401
    from axnet.train import fitting, packing  # noqa: F401

    for name, *arguments in json.loads(calls):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                SCRIPTS[name](*arguments)
            except SystemExit as ended:
                os._exit(int(ended.code or 0))
            except BaseException as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(70)
            sys.stdout.flush()
            os._exit(0)
        print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def wait() -> None:
    """Say that the imports are done, and go on when all others have done theirs."""
    print("ready", flush=True)
    sys.stdin.readline()


def cached(folder: str, size: str, images: str) -> None:
    """Draw phantoms into a cache, at the same moment as another process; print what came out."""
    import hashlib

    from axnet.models import Preprocessing
    from axnet.train import DataConfig, open_part

    config = DataConfig(train_images=int(images), workers=0, cache=folder)
    wait()
    data = open_part(config, "train", Preprocessing(size=int(size)))
    digest = hashlib.sha256(data.images.numpy().tobytes())
    assert data.masks is not None
    digest.update(data.masks.numpy().tobytes())
    print(digest.hexdigest())


def table(path: str, start: str, count: str, writers: str) -> None:
    """Add rows to a mask table, a part for each few, at the same moment as another process."""
    import numpy as np

    from axnet.data import MaskWriter
    from axnet.data.mask_table import to_row

    wait()
    for _ in range(int(writers)):
        writer = MaskWriter(path)
        for number in range(int(start), int(start) + int(count)):
            masks = np.random.default_rng(number).random((3, 12, 10)) > 0.6
            writer.add(to_row(f"{number:05d}.png", masks, 0.5, 0.9, []))
            if number % 7 == 0:
                writer.flush()
        writer.finish()


def workers(method: str, root: str, table: str) -> None:
    """Read a data set with masks of a table in two worker processes, started by this method, and train on it."""
    import multiprocessing

    multiprocessing.set_start_method(method)
    from axnet.data import MaskTable, NIHChestXray
    from axnet.models import Preprocessing
    from axnet.train import FitConfig, collect
    from axnet.train import fit as train

    source = NIHChestXray(root, "train_val", masks=MaskTable(table))
    sets = [collect(source, Preprocessing(size=32), workers=count) for count in (0, 2)]  # type: ignore[arg-type]
    assert sets[0].masks is not None
    assert torch.equal(sets[0].images, sets[1].images)
    assert torch.equal(sets[0].masks, sets[1].masks)  # type: ignore[arg-type]
    results = []
    for count in (0, 2):
        config = FitConfig(
            out=f"{root}/run-{count}",
            max_steps=2,
            batch_size=4,
            workers=count,
            accelerator="cpu",
            progress=False,
            options={"backbone": "tiny", "reduction": 0.25, "num_anatomies": 3},
        )
        results.append(train(config, *sets[1].split_by_patient(0.3)).model.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


SCRIPTS: dict[str, Callable[..., None]] = {f.__name__: f for f in (fit, command, forked, cached, table, workers)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    SCRIPTS[sys.argv[1]](*sys.argv[2:])
