"""Keep what `axnet evaluate` found about the classifier that comes with axnet: localisation, and two truths.

    for set in nih_128 nih_subset; do tail -n +2 $set/BBox_List_2017.csv | cut -d, -f1 | sort -u > $set-boxes.txt; done
    axnet evaluate --data nih,nih --root nih_128,nih_subset --split nih_128-boxes.txt,nih_subset-boxes.txt --out boxes
    axnet evaluate --data phantom --test-images 240 --out phantom
    axnet evaluate --data nih --root nih_128 --split google-films.txt --adjudicated google2019 --out google
    python benchmarks/evaluation.py boxes phantom google

google-films.txt lists the films of nih_128 that the table google2019 has. Writes benchmarks/results/evaluation.json, of
which benchmarks/report.py makes the tables of docs/evaluation.md (the functions below).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from axnet.metrics.localisation import PRIORNET

RESULTS = Path(__file__).resolve().parent / "results"
RECORD = RESULTS / "evaluation.json"


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def localisation() -> str:
    """Boxes against maps, as a table."""
    record = load(RECORD)["localisation"]
    thresholds = ("0.1", "0.3", "0.5", "0.7")
    head = ["boxes", "number", "pointing game", *(f"IoU {t}" for t in thresholds), *(f"IoBB {t}" for t in thresholds)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for title, found in record.items():
        for name, part in list(found["parts"].items())[:4]:
            values = [part["pointing_game"]]
            values += [part[kind][t] for kind in ("iou_accuracy", "iobb_accuracy") for t in thresholds]
            lines.append(f"| {title}, {name} | {part['boxes']} | {' | '.join(f'{v:.2f}' for v in values)} |")
    published = (f"{PRIORNET[float(t)]:.2f}" for t in thresholds)
    lines.append(f"| ThoraX-PriorNet, published | | | {' | '.join(published)} | | | | |")
    return "\n".join(lines) + "\n"


def label_quality() -> str:
    """AUC by two truths, as a table."""

    def cell(auc: dict[str, float | None]) -> str:
        if auc["value"] is None:
            return "-"
        return f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})"

    lines = ["| finding | films | agree | positives by NIH, by radiologists | AUC by NIH | AUC by radiologists |"]
    lines.append("|---|---|---|---|---|---|")
    for one in load(RECORD)["label_quality"]:
        positives = f"{one['positives']['set']}, {one['positives']['radiologists']}"
        few = " (few)" if min(one["positives"].values()) < 15 else ""
        lines.append(
            f"| {one['finding']} | {one['films']} | {100 * one['agreement']:.0f} % | {positives}{few} | "
            f"{cell(one['auc']['set'])} | {cell(one['auc']['radiologists'])} |"
        )
    return "\n".join(lines) + "\n"


def speed() -> str:
    """How long the bootstrap takes."""
    record = load(RESULTS / "metrics.json")
    plain = record["plain_seconds_per_resample"] * record["resamples"]
    machine = record["environment"]
    return (
        f"{record['resamples']:,} resamples of {record['findings']} findings on {record['films']:,} films of "
        f"{record['patients']:,} patients: {record['processor_seconds']:.1f} s of processor, {record['seconds']:.1f} "
        f"s in all ({machine['CPU']}, {machine['cores']} cores that others were using); the plain way, beside it: "
        f"{plain:,.0f} s.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("boxes", "phantom", "adjudicated"):
        parser.add_argument(name, type=Path, help="a folder that axnet evaluate wrote")
    arguments = parser.parse_args()
    found = {name: load(folder / "metrics.json") for name, folder in vars(arguments).items()}
    record = {
        "localisation": {
            "NIH": found["boxes"]["localisation"]["frontal"],
            "phantom": found["phantom"]["localisation"]["frontal"],
        },
        "label_quality": found["adjudicated"]["label_quality"],
        "runs": {
            name: {"split": one["run"]["split name"], "split_hash": one["split_hash"]} for name, one in found.items()
        },
        "environment": found["boxes"]["environment"],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
