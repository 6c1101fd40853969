"""manifest.json: what a packed folder holds, by which it is known."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axnet.data.files import locked, replacing

MANIFEST = "manifest.json"
FILMS = "films.parquet"
STATE = ".prepare"
"""Folder of a run of axnet prepare that is under way or was cut off."""
FORMAT = "axnet-packed-1"


@dataclass(frozen=True)
class Manifest:
    """A packed data set.

    data, title, real: of the data set that it was made of (axnet.data.sets). findings: K names; blank: what a blank
    label stands for there. roles: "train" and "test", to splits; splits: name, number of films and hash of each.
    size, percentiles: how the films were made, as axnet.models.Preprocessing; size None for films as they were.
    masks: where they are from, None without. shards: file, films, bytes, sha256 of each; films: sha256 of
    films.parquet. failed: id and reason of the films that could not be read. plan: names settings and films.
    """

    data: str
    title: str
    real: bool
    findings: tuple[str, ...]
    blank: str
    roles: Mapping[str, str]
    splits: Mapping[str, Mapping[str, Any]]
    size: int | None
    percentiles: tuple[float, float] | None
    masks: str | None
    shards: tuple[Mapping[str, Any], ...]
    films: str
    plan: str
    source: str = ""
    failed: tuple[Mapping[str, str], ...] = ()
    axnet: str = ""
    format: str = FORMAT

    def write(self, folder: Path) -> None:
        """Put manifest.json into a folder in one step."""
        with replacing(folder / MANIFEST) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1) + "\n")


class Place:
    """Where packed files are: a folder, or a URL that fsspec knows, of which each file is fetched once.

    root: folder or URL. cache: folder for what is fetched, None for one in the system's folder for temporary files.
    """

    def __init__(self, root: str, cache: str | None = None) -> None:
        """Nothing is read yet."""
        self.root = str(root).rstrip("/")
        self.remote = "://" in self.root
        self.cache = (
            Path(cache or tempfile.gettempdir()) / f"axnet-{hashlib.sha256(self.root.encode()).hexdigest()[:16]}"
        )
        self.sizes: dict[str, tuple[int, str]] = {}

    def exists(self) -> bool:
        """Whether there is a manifest."""
        if self.remote:
            return bool(self._files().exists(f"{self.root}/{MANIFEST}"))
        return (Path(self.root) / MANIFEST).is_file()

    def manifest(self) -> Manifest:
        """The manifest. Raises ValueError for one that is damaged or of another kind or version."""
        where = f"{self.root}/{MANIFEST}"
        text = self._files().cat_file(where) if self.remote else Path(where).read_bytes()
        try:
            said = json.loads(text)
            if said.get("format") != FORMAT:
                raise ValueError(f"format is {said.get('format')!r}, expected {FORMAT!r}")
            for name in ("findings", "shards", "failed"):
                said[name] = tuple(said[name])
            if said["percentiles"] is not None:
                said["percentiles"] = tuple(said["percentiles"])
            found = Manifest(**said)
            self.sizes = {shard["file"]: (shard["bytes"], shard["sha256"]) for shard in found.shards}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"'{where}' is damaged or none of axnet prepare ({error}).") from error
        self.sizes[FILMS] = (-1, found.films)
        return found

    def locate(self, name: str) -> Path:
        """A local file of this name. Raises ValueError for one whose size is not that of the manifest."""
        path = self._fetched(name) if self.remote else Path(self.root) / name
        if not path.is_file():
            raise ValueError(f"'{path}' does not exist")
        expected = self.sizes[name][0]
        if expected not in (-1, path.stat().st_size):
            raise ValueError(f"{path.stat().st_size} bytes, expected {expected}")
        return path

    def _fetched(self, name: str) -> Path:
        digest = self.sizes[name][1]
        target = self.cache / f"{digest[:16]}-{name}"
        if target.is_file():
            return target
        lock = self.cache / f".{target.name}.lock"
        with locked(lock):
            if not target.is_file():
                with replacing(target) as partial:
                    self._files().get_file(f"{self.root}/{name}", str(partial))
                    if sha256(partial) != digest:
                        raise ValueError(f"what was fetched from '{self.root}/{name}' is not what was written")
            lock.unlink(missing_ok=True)
        return target

    def _files(self) -> Any:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.root)[0]
        except (ImportError, ValueError) as error:
            raise ValueError(f"root '{self.root}' cannot be opened ({error}).") from error


def is_packed(root: str | None) -> bool:
    """Whether this is a folder or URL of packed films."""
    return root is not None and Place(root).exists()


def sha256(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
