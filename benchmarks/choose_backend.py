"""Write axnet/_choice.py: which backend `auto` takes on a GPU for each kind of work, layout and type.

python benchmarks/choose_backend.py RECORD.json [MORE.json ...]            # rewrite
python benchmarks/choose_backend.py RECORD.json [MORE.json ...] --check    # exit code 1 where it would change

A record holds "device", "commit" and "passes": rows of pass, backend, dtype, layout and median (ms). A row of a later
record replaces the same row of an earlier one. A record with "predicted": true was computed, not measured; so are the
rows that benchmarks/cuda_model.py writes (--out). The header of the table says which is which.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "axnet" / "_choice.py"
# What a call of each kind runs: forward and backward are one choice.
WORK = {
    "descriptors": ("descriptors",),
    "attention": ("descriptors", "gate + norm"),
    "attention, training": ("moments", "gate + norm", "backward sums", "backward input"),
    "pwap, few maps": ("pwap, 1",),
    "pwap, few maps, training": ("pwap, 1", "pwap backward, 1"),
    "pwap, many maps": ("pwap, 14",),
    "pwap, many maps, training": ("pwap, 14", "pwap backward, 14"),
}
FIRST = "native"  # taken where the records name no winner
# Milliseconds of the host that a pass costs more in Triton: on the H200 of 2026-11-26 its two passes of A3 in inference
# took 0.35 ms less than the native ones and the call 0.09 ms more. Captured in a graph or compiled it is nothing.
HOST = 0.2
ELEMENTS = 64 * 1024 * 48 * 48  # of the map that benchmarks/gpu.py times its passes with

Case = tuple[str, str, str]  # pass, layout, dtype


def read(path: Path) -> dict[str, Any]:
    """A record of passes, from a file of benchmarks/gpu.py or of one of the judges."""
    found: Any = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, list):  # kernels of the CUDA judge
        sums: dict[Case, float] = {}
        for row in found:
            case = (row["name"], row["layout"], row["dtype"])
            sums[case] = sums.get(case, 0.0) + row["predicted_ms"]
        passes = [
            {"pass": name, "layout": layout, "dtype": dtype, "backend": FIRST, "median": round(total, 4)}
            for (name, layout, dtype), total in sums.items()
        ]
        return {"predicted": True, "device": "an H200", "commit": f"of {path.name}", "passes": passes}
    environment = found.get("environment", {})  # benchmarks/gpu.py keeps these two beside the versions
    found.setdefault("device", environment.get("device", "unknown device"))
    found.setdefault("commit", environment.get("commit", "unknown"))
    return dict(found)


def times_of(records: list[dict[str, Any]]) -> dict[Case, dict[str, float]]:
    """Milliseconds by case and backend, the last record's where several have them."""
    times: dict[Case, dict[str, float]] = {}
    for record in records:
        for row in record["passes"]:
            case = (row["pass"], row["layout"], row["dtype"].removeprefix("torch."))
            times.setdefault(case, {})[row["backend"]] = row["median"]
    return times


def choose(times: dict[Case, dict[str, float]]) -> dict[Case, tuple[str, int, dict[str, float]]]:
    """For each kind of work all of whose passes were timed: backend, least elements for it to win, all times."""
    found = {}
    for layout, dtype in dict.fromkeys((layout, dtype) for _, layout, dtype in times):
        for work, passes in WORK.items():
            rows = [times.get((name, layout, dtype), {}) for name in passes]
            both = set(rows[0]).intersection(*rows[1:])
            totals = {backend: round(sum(row[backend] for row in rows), 3) for backend in sorted(both)}
            if FIRST not in totals:
                continue
            best = min(totals, key=lambda name: (totals[name], name != FIRST))
            gain = totals[FIRST] - totals[best]
            least = 0 if best == FIRST else round(HOST * len(passes) / gain * ELEMENTS / 2**20) * 2**20
            found[work, layout, dtype] = (best, least, totals)
    return found


def origin(record: dict[str, Any]) -> list[str]:
    names = sorted({row["backend"] for row in record["passes"]})
    how = "predicted" if record.get("predicted") else "measured"
    return textwrap.wrap(f"{' and '.join(names)} {how}: {record['device']}; commit {record['commit']}.", 118)


def table(records: list[dict[str, Any]]) -> str:
    """The text of axnet/_choice.py."""
    lines = ['"""Which backend is the faster one on a GPU: written by benchmarks/choose_backend.py, not by hand.', ""]
    for record in records:
        lines += origin(record)
    lines += [
        "By work, layout and type: the backend and, outside of torch.compile, the least elements of X for which it is",
        "taken; beside it the milliseconds of all passes of the work at 151 million elements.",
        '"""',
        "",
        "FASTER: dict[tuple[str, str, str], tuple[str, int]] = {",
    ]
    for (work, layout, dtype), (name, least, totals) in choose(times_of(records)).items():
        shown = ", ".join(f"{backend} {total:.3f}" for backend, total in totals.items())
        lines.append(f'    ("{work}", "{layout}", "{dtype}"): ("{name}", {least}),  # {shown}')
    return "\n".join([*lines, "}"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing")
    arguments = parser.parse_args()
    records = [read(path) for path in arguments.records]
    written = table(records)
    if not arguments.check:
        TABLE.write_text(written, encoding="utf-8")
    elif TABLE.read_text(encoding="utf-8") != written:
        sys.exit(f"{TABLE.name} differs from the records: run python benchmarks/choose_backend.py")


if __name__ == "__main__":
    main()
