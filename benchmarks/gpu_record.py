"""The record of benchmarks/gpu.py: one line a result, on disk before the next begins, read again by the next run."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def fingerprint() -> str:
    """Of everything that the results depend on: the sources of the package and its kernels."""
    digest = hashlib.sha256()
    for folder in ("axnet", "csrc", "kernels"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Record:
    """Results by step and key. What another version of the sources left in the file is passed over."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file, self.sources = folder, folder / "gpu.jsonl", fingerprint()
        self.values: dict[tuple[str, str], Any] = {}
        if self.file.exists():
            text = self.file.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines():
                self._take(line)
            if text and not text.endswith("\n"):  # cut in the middle of a line
                with self.file.open("a", encoding="utf-8") as file:
                    file.write("\n")

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
            if row["sources"] == self.sources:
                self.values[row["step"], row["key"]] = row["value"]
        except (ValueError, KeyError, TypeError):
            return

    def has(self, step: str, key: str) -> bool:
        return (step, key) in self.values

    def get(self, step: str, key: str) -> Any:
        return self.values[step, key]

    def of(self, step: str) -> dict[str, Any]:
        return {key: value for (name, key), value in self.values.items() if name == step}

    def put(self, step: str, key: str, value: Any) -> None:
        value = json.loads(json.dumps(value))
        self.values[step, key] = value
        row = {"step": step, "key": key, "value": value, "sources": self.sources, "time": round(time.time())}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(step, key, flush=True)

    def summary(self) -> dict[str, Any]:
        """As benchmarks/report.py reads it."""
        lists = {name: [] for name in ("passes", "blocks", "heads", "graph", "models")}
        result: dict[str, Any] = {}
        for (step, key), value in self.values.items():
            if step in lists and isinstance(value, list):
                lists[step] += value
            elif step in lists and isinstance(value, dict):
                lists[step].append(value)
            else:
                result[key if step in ("passes", "facts") else f"{step} {key}"] = value
        return result | {name: rows for name, rows in lists.items() if rows}

    def write(self) -> None:
        part = self.folder / "gpu.json.part"
        part.write_text(json.dumps(self.summary(), indent=1) + "\n", encoding="utf-8")
        part.replace(self.folder / "gpu.json")
