"""`axnet prepare`: a data set to shards, on all cores; what is killed goes on with the shards that it lacks."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import axnet
from axnet.data.files import locked, replacing
from axnet.data.findings import Box
from axnet.data.mask_table import MaskTable
from axnet.data.packed.films import FACTS, LABEL
from axnet.data.packed.manifest import FILMS, MANIFEST, STATE, Manifest, Place, sha256
from axnet.data.splits import check_disjoint, split_hash
from axnet.devices import device_of
from axnet.paths import StrPath
from axnet.progress import SILENT, Progress
from axnet.segment import Segmenter
from axnet.segment.pretrained import WEIGHTS
from axnet.train.data import XraySource
from axnet.train.facts import ATTRIBUTES, known_attributes, known_boxes
from axnet.train.packers import Packer, Shard, Task, count_into, pack, start
from axnet.train.sources import DataConfig, Part

_SHARD_BYTES = 1 << 28
_DRAWN = 128  # pixels of phantoms that are kept as they are drawn
_KEPT = 256  # films of a shard whose sizes are not known


@dataclass(frozen=True)
class Prepared:
    """films: how many are packed; failed: id and reason of those that are not."""

    films: int
    failed: tuple[tuple[str, str], ...]


def prepare(
    data: DataConfig,
    out: Path,
    packer: Packer,
    *,
    splits: Sequence[str] | None = None,
    masks: str | None = None,
    workers: int = 0,
    progress: Progress = SILENT,
) -> Prepared:
    """Pack the films of a data set into a folder, or go on with it.

    data: which films; packer: how; splits: names of the set's own, None for those that it trains and is measured on.
    masks: where the masks are from, for the manifest. workers: processes, 0 for none besides this one.
    Shards that are there and whole are not made again, but for those that lack films that could not be read.
    Raises ValueError for a folder of other films or settings, OSError where it cannot be written,
    ChildProcessError where a worker was killed.
    """
    if data.members:
        raise ValueError(f"data is '{data.data}', expected one set: pack each in a folder of its own.")
    if data.packed:
        raise ValueError(f"root '{data.root}' is packed already, expected a data set as it is downloaded.")
    found = data.dataset
    roles = {**found.splits}
    for name in splits or ():
        roles.update(found.named.get(name, {}))
    asked = [[*found.named.get(name, {"": name}).values()] for name in splits or ()]
    names = tuple(dict.fromkeys(found.splits.values() if splits is None else itertools.chain(*asked)))
    sources = {name: _source(data, name, packer.size) for name in names}
    check_disjoint({name: source.patients for name, source in sources.items()}, "splits")
    tasks = _tasks(sources, packer)
    settings = {"data": data.data, "splits": list(names), "masks": masks, **packer.settings}
    plan = _plan(settings, sources, tasks)
    state = out / STATE
    with _alone(out):
        _take_up(out, state, plan, settings)
        made = {task.number: shard for task in tasks if (shard := _made(state, out, task)) is not None}
        already = sum(len(task.films) for task in tasks if task.number in made)
        with progress.step("packing the films", sum(len(task.films) for task in tasks)) as done:
            waiting = [task for task in tasks if task.number not in made]
            for task, shard in _packed(replace(packer, out=str(out)), sources, waiting, workers, already, done):
                with replacing(state / f"{task.number:05d}.json") as partial:
                    partial.write_text(json.dumps(asdict(shard)))
                made[task.number] = shard
        failed = tuple((name, reason) for task in tasks for name, reason in made[task.number].failed)
        for task in tasks:
            if not made[task.number].films:
                (out / made[task.number].file).unlink(missing_ok=True)
        shards = [task for task in tasks if made[task.number].films]
        if not shards:
            raise ValueError(f"none of {len(failed)} films could be read, among them '{failed[0][0]}': {failed[0][1]}")
        table = _table(sources, shards, made)
        with replacing(out / FILMS) as partial:
            pq.write_table(table, partial, compression="zstd")
        first = next(iter(sources.values()))
        Manifest(
            data=data.data,
            title=found.title,
            real=found.real,
            findings=tuple(first.findings),
            blank=getattr(first, "blank", "ignore"),
            roles={role: name for role, name in roles.items() if name in names},
            splits={name: _split(name, source, table) for name, source in sources.items()},
            masks=masks,
            shards=tuple(made[task.number].record() for task in shards),
            films=sha256(out / FILMS),
            plan=plan,
            source=data.root or "",
            failed=tuple({"id": name, "reason": reason} for name, reason in failed),
            axnet=axnet.__version__,
            **packer.settings,
        ).write(out)
        shutil.rmtree(state)
    return Prepared(len(table), failed)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Of several processes that pack into one folder, one does; the others wait, and find it done."""
    lock = out / f"{STATE}.lock"
    with locked(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def pack_options(
    data: DataConfig, size: int | None, masks: str, segmenter: StrPath | None, device: str = "cpu"
) -> tuple[Packer, str | None]:
    """How to pack, and where the masks are from, as a user names it.

    masks: "segmenter" for the set's own masks, or where it has none those of segmenter (None for the one that comes
    with axnet); "none"; or a mask table. Raises as MaskTable, Segmenter.load and device_of do.
    """
    found = data.dataset
    if masks == "none":
        return Packer(size), None
    if masks != "segmenter":
        table = MaskTable(masks)
        return Packer(size, table=str(table.path)), f"table {table.path.name} {table.fingerprint()}"
    if segmenter is None and found.masked:
        return Packer(size, own_masks=True), "the set's own"
    weights = Path(WEIGHTS if segmenter is None else segmenter)
    Segmenter.load(weights)  # or say now what is wrong
    packer = Packer(size, segmenter=str(weights), fallback=found.real, device=str(device_of(device)))
    return packer, f"segmenter {weights.name} {sha256(weights)[:24]}"


def _source(data: DataConfig, split: str, size: int | None) -> XraySource:
    part: Part = "test" if split == data.dataset.splits.get("test") else "train"
    return replace(data, split=split).source(part, size=_DRAWN if size is None else size)


def _tasks(sources: Mapping[str, XraySource], packer: Packer) -> list[Task]:
    """The films of each shard: as many whatever the number of workers, so that a run can go on with another."""
    films = []
    for name, source in sources.items():
        locate = getattr(source, "path", None)
        for index, film in enumerate(source.ids):
            films.append((film, None if locate is None else str(locate(film)), name, index))
    seen = {film[0] for film in films}
    if len(seen) < len(films):
        raise ValueError(f"splits {tuple(sources)} have {len(films) - len(seen)} films in common, expected none.")
    bound = _KEPT if packer.size is None else max(1, _SHARD_BYTES // packer.size**2)
    count = min(bound, max(16, -(-len(films) // 64)))
    return [Task(place // count, films[place : place + count]) for place in range(0, len(films), count)]


def _plan(settings: Mapping[str, Any], sources: Mapping[str, XraySource], tasks: Sequence[Task]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for source in sources.values():
        digest.update(json.dumps([list(source.ids), list(source.patients), list(source.findings)]).encode())
        digest.update(_raw(source).tobytes())
    digest.update(str(len(tasks)).encode())
    return digest.hexdigest()[:24]


def _take_up(out: Path, state: Path, plan: str, settings: Mapping[str, Any]) -> None:
    """Make a folder's state that of a run under way, whether it is new, cut off or done."""
    record = {"plan": plan, **settings}
    begun: dict[str, Any] | None = None
    place = Place(str(out))
    if place.exists():
        manifest = place.manifest()
        begun = {**asdict(manifest), "splits": list(manifest.splits)}
    elif (state / "plan.json").is_file():
        begun = json.loads((state / "plan.json").read_text())
    for name, value in (begun or {}).items():
        if name in settings and json.dumps(value) != json.dumps(settings[name]):
            raise ValueError(
                f"out '{out}' holds films that were packed with {name} {value!r}, now it is {settings[name]!r}: "
                "expected the same, or another folder."
            )
    if begun is not None and begun["plan"] != plan:
        raise ValueError(f"out '{out}' holds other films or labels: expected the same, or another folder.")
    state.mkdir(parents=True, exist_ok=True)
    for cut in out.glob(".*.arrow.*"):  # of a run that was killed; the lock is ours
        cut.unlink()
    if not (state / "plan.json").is_file():
        with replacing(state / "plan.json") as partial:
            partial.write_text(json.dumps(record))
    if place.exists():  # what is damaged is made again, and until then the folder is not done
        for shard in manifest.shards:
            file = out / shard["file"]
            if file.is_file() and sha256(file) == shard["sha256"]:
                kept = Shard(shard["films"], shard["bytes"], shard["sha256"], shard["file"])
                with replacing(state / f"{Path(shard['file']).stem.rsplit('-', 1)[1]}.json") as partial:
                    partial.write_text(json.dumps(asdict(kept)))
        (out / MANIFEST).unlink()


def _made(state: Path, out: Path, task: Task) -> Shard | None:
    """What an earlier run made of a task; None where that is not whole, or lacks films that may be there by now."""
    file = state / f"{task.number:05d}.json"
    if not file.is_file():
        return None
    shard = Shard.of(json.loads(file.read_text()))
    path = out / shard.file
    whole = path.is_file() and path.stat().st_size == shard.bytes and shard.films == len(task.films)
    return shard if whole else None


def _packed(
    packer: Packer,
    sources: Mapping[str, XraySource],
    tasks: Sequence[Task],
    workers: int,
    already: int,
    done: Callable[[int], None],
) -> Iterator[tuple[Task, Shard]]:
    """Each task with its shard, as they come."""
    drawn = {name: source for name, source in sources.items() if not hasattr(source, "path")}
    if already:
        done(already)
    if not tasks:
        return
    if workers == 0:
        seen = already

        def step() -> None:
            nonlocal seen
            seen += 1
            done(seen)

        start(packer, drawn)
        count_into(step)
        for task in tasks:
            yield task, pack(task)
        return
    # a process that has begun to use a GPU cannot be forked
    context = multiprocessing.get_context(None if packer.device == "cpu" else "spawn")
    counter = context.Value("q", already)
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=start, initargs=(packer, drawn, counter))
    with pool:
        running: dict[Future[Shard], Task] = {pool.submit(pack, task): task for task in tasks}
        try:
            while running:
                ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                done(counter.value)
                for future in ended:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that packs films was killed, perhaps for its memory; the same command goes on from the "
                "shards that are whole."
            ) from error
        finally:
            for future in running:
                future.cancel()


def _table(sources: Mapping[str, XraySource], tasks: Sequence[Task], made: Mapping[int, Shard]) -> pa.Table:
    """Labels and place of every film that is packed, and what else is known of it."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("image", "patient", "view", "split", "shard", "row", *FACTS.names)
    }
    rows: list[npt.NDArray[np.float32]] = []
    labels = {name: _raw(source) for name, source in sources.items()}
    facts = {name: _facts(source) for name, source in sources.items()}
    for number, task in enumerate(tasks):
        lost = {name for name, _ in made[task.number].failed}
        kept = [film for film in task.films if film[0] not in lost]
        for row, (film, _, split, index) in enumerate(kept):
            patient = sources[split].patients[index]
            sex, age, view, boxes = facts[split][index]
            values = (film, patient, view or "", split, number, row, sex, age, boxes or None)
            for column, value in zip(columns, values, strict=True):
                columns[column].append(value)
            rows.append(labels[split][index])
    known = np.stack(rows)
    findings = next(iter(sources.values())).findings
    types = {field.name: field.type for field in FACTS}
    table = pa.table({name: pa.array(column, types.get(name)) for name, column in columns.items()})
    for place, finding in enumerate(findings):
        table = table.append_column(LABEL + finding, pa.array(known[:, place]))
    return table


def _split(name: str, source: XraySource, table: pa.Table) -> dict[str, Any]:
    """A split's name in reports, and the films of it that are packed."""
    ids = table.filter(pc.equal(table["split"], name))["image"].to_pylist()
    return {"name": getattr(source, "split_name", name), "films": len(ids), "hash": split_hash(ids)}


def _raw(source: XraySource) -> npt.NDArray[np.float32]:
    """Labels before a policy: 0, 1, -1 for uncertain, NaN for blank."""
    return np.asarray(getattr(source, "raw", source.labels), dtype=np.float32)


def _facts(source: XraySource) -> list[tuple[str | None, float | None, str | None, list[dict[str, Any]]]]:
    """sex, age, view and boxes of every film."""
    known = known_attributes(source)
    columns = [known.get(name, [None] * len(source)) for name in ATTRIBUTES]
    boxes: list[list[dict[str, Any]]] = [[] for _ in range(len(source))]
    for row, *box in known_boxes(source):
        boxes[row].append(dict(zip(Box._fields, box, strict=True)))
    return list(zip(*columns, boxes, strict=True))


def processors() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
