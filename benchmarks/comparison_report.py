"""Tables, record and plot of the comparison, from the runs that benchmarks/comparison.py left.

    python benchmarks/comparison_report.py --films films --runs runs

Writes benchmarks/results/comparison.json, docs/comparison.png and the tables of docs/comparison.md. AUCs are means over
the findings with at least 15 positives on NIH's official test films; intervals by bootstrap over patients, with all
models and seeds on the same resamples, so differences are paired; DeLong's test per finding, on the seeds' mean logits,
with patients as units. Runs that were cut off are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from axnet.data import NIH_FINDINGS  # noqa: E402
from axnet.metrics import delong_test, mean_auc  # noqa: E402
from axnet.metrics.bootstrap import resampled_aucs  # noqa: E402
from benchmarks.comparison_films import Films, labels_of, load  # noqa: E402
from benchmarks.comparison_jobs import ROWS, SEEDS  # noqa: E402
from benchmarks.comparison_train import Data  # noqa: E402
from benchmarks.report import origin  # noqa: E402

LEAST, RESAMPLES = 15, 1000
BASELINE = 2
SMALL = "a small DenseNet + GAP, from scratch"  # row 1 of the short plan


class Runs:
    """Finished runs by name: records and logits."""

    def __init__(self, folder: Path) -> None:
        found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
        self.records = {record["job"]["name"]: record for record in found if record["finished"]}
        self.folder = folder

    def logits(self, name: str, part: str) -> np.ndarray:
        with np.load(self.folder / f"{name}.npz") as stored:
            return stored[part]

    def of_row(self, row: int) -> list[str]:
        """One run a seed; of several learning rates on seed 0 that which validates best."""
        names = []
        for seed in SEEDS:
            fitting = [n for n in self.records if re.fullmatch(rf"row{row}(-lr[\d.e-]+)?-s{seed}", n)]
            if fitting:
                names.append(max(fitting, key=lambda name: self.records[name]["validation_auc"]))
        return names


def interval(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in np.nanquantile(values, [0.025, 0.975])]


def evaluate(runs: Runs, truth: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    kept = np.flatnonzero(truth.sum(0) >= LEAST)
    labels = truth[:, kept]
    rows = {row: runs.of_row(row) for row in ROWS}
    others = [name for name in runs.records if name.startswith(("variation", "candidate"))]
    names = [name for row in rows.values() for name in row] + others
    scores = [runs.logits(name, "test")[:, kept].astype(np.float64) for name in names]
    groups = np.unique(patients, return_inverse=True)[1]
    drawn = resampled_aucs(labels, scores, groups, 0, RESAMPLES).mean(1)  # [runs, resamples]
    whole = np.array([mean_auc(labels, score) for score in scores])
    of = {name: index for index, name in enumerate(names)}

    def mean(chosen: list[str]) -> tuple[float, np.ndarray]:
        index = [of[name] for name in chosen]
        return float(whole[index].mean()), drawn[index].mean(0)

    base, base_drawn = mean(rows[BASELINE])
    result: dict[str, Any] = {"rows": {}, "runs": {}, "findings": [NIH_FINDINGS[k] for k in kept]}
    for row, chosen in rows.items():
        if not chosen:
            continue
        value, resampled = mean(chosen)
        result["rows"][row] = {
            "name": SMALL if runs.records[chosen[0]]["job"]["backbone"] == "tiny" else ROWS[row],
            "seeds": len(chosen),
            "auc": round(value, 4),
            "interval": interval(resampled),
            "by_seed": [round(float(whole[of[name]]), 4) for name in chosen],
            "validation": [round(runs.records[name]["validation_auc"], 4) for name in chosen],
            "lr": runs.records[chosen[0]]["job"]["recipe"]["lr"],
            "difference": round(value - base, 4),
            "difference_interval": interval(resampled - base_drawn),
            "delong": delong(runs, chosen, rows[BASELINE], labels, patients, kept),
        }
    for name in names:
        record = runs.records[name]
        result["runs"][name] = {
            "validation": round(record["validation_auc"], 4),
            "test": round(float(whole[of[name]]), 4),
            "interval": interval(drawn[of[name]]),
            "difference": round(float(whole[of[name]]) - base, 4),
            "difference_interval": interval(drawn[of[name]] - base_drawn),
            "recipe": record["job"]["recipe"],
            "options": record["job"]["options"],
            "seconds": round(record["seconds"], 1),
            "parameters": record["parameters"],
            "adapted": record.get("adapted"),
        }
    return result


def delong(
    runs: Runs, chosen: list[str], base: list[str], labels: np.ndarray, patients: np.ndarray, kept: np.ndarray
) -> dict[str, Any]:
    """Per finding: difference and p of the logits averaged over the seeds."""
    a = np.mean([runs.logits(name, "test")[:, kept] for name in chosen], axis=0)
    b = np.mean([runs.logits(name, "test")[:, kept] for name in base], axis=0)
    tests = [delong_test(labels[:, k], a[:, k], b[:, k], patients) for k in range(labels.shape[1])]
    return {
        NIH_FINDINGS[finding]: {"difference": round(test.difference, 4), "p": round(test.p, 4)}
        for finding, test in zip(kept, tests, strict=True)
    }


def other_masks_dice(films: Films) -> dict[str, float]:
    """How much of a film's organs the masks of another patient (row 8) still cover: mean Dice over the test films."""
    data = Data(films, torch.device("cpu"))
    test = data.parts["test"]
    own, other = (torch.from_numpy(films.masks[rows] > 127) for rows in (test, data.other[test]))
    dice = compute_dice(other, own).nanmean(0)
    return {name: round(float(value), 3) for name, value in zip(("lungs", "heart"), dice, strict=True)}


def tables(result: dict[str, Any]) -> str:
    recipe, films = result["recipe"], result["films"]
    lines = [
        f"{films['train']} films of training, {films['validation']} of validation, {films['test']} of test; "
        f"{recipe['epochs']} epochs at {recipe['size'] or 128} px in batches of {recipe['batch']}. "
        f"{origin(result['environment'])}.",
        "",
        "| | model | validation, by seed | test: mean AUC (95 %) | by seed | against row 2 (95 %) "
        "| findings with p < 0.05: better, worse |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, found in result["rows"].items():
        low, high = found["interval"]
        validation, by_seed = (", ".join(f"{value:.3f}" for value in found[of]) for of in ("validation", "by_seed"))
        against = significant = "-"
        if int(row) != BASELINE:
            against = "{:+.3f} ({:+.3f} to {:+.3f})".format(found["difference"], *found["difference_interval"])
            clear = [test["difference"] for test in found["delong"].values() if test["p"] < 0.05]
            significant = f"{sum(d > 0 for d in clear)}, {sum(d < 0 for d in clear)}"
        lines.append(
            f"| {row} | {found['name']} | {validation} | {found['auc']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {by_seed} | {against} | {significant} |"
        )
    dice = ", ".join(f"{name} {value:.2f}" for name, value in result["other_masks_dice"].items())
    lines += ["", f"Dice of another patient's masks with the film's own, mean over the test films: {dice}."]
    others = {name: run for name, run in result["runs"].items() if not name.startswith("row")}
    if others:
        lines += ["", "| run | validation | test (95 %) | against row 2 (95 %) |", "|---|---|---|---|"]
    for name, run in sorted(others.items(), key=lambda item: -item[1]["validation"]):
        low, high = run["interval"]
        against = "{:+.3f} ({:+.3f} to {:+.3f})".format(run["difference"], *run["difference_interval"])
        lines.append(f"| {name} | {run['validation']:.3f} | {run['test']:.3f} ({low:.3f} to {high:.3f}) | {against} |")
    adapted = {name: run for name, run in result["runs"].items() if run["adapted"]}
    if adapted:
        lines += ["", "| run | validation, adapted | test, adapted |", "|---|---|---|"]
    for name, run in adapted.items():
        lines.append(
            f"| {name} | {run['validation']:.3f}, {run['adapted']['validation_auc']:.3f} "
            f"| {run['test']:.3f}, {run['adapted']['test_auc']:.3f} |"
        )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(rows) + 1.2))
    for place, (row, found) in enumerate(rows.items()):
        low, high = found["interval"]
        axes.plot([low, high], [place, place], color="#4c6ef5", lw=2)
        axes.plot(found["by_seed"], [place] * len(found["by_seed"]), "o", color="#ff922b", ms=5, zorder=3)
        axes.plot(found["auc"], place, "|", color="black", ms=14, mew=2)
        axes.text(
            -0.01, place, f"{row}  {found['name']}", ha="right", va="center", transform=axes.get_yaxis_transform()
        )
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("mean AUC, official test films of nih_128: mean, 95 % over patients, seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True, help="folder that comparison.py --pack wrote")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "comparison.json")
    arguments = parser.parse_args()
    runs = Runs(arguments.runs)
    films = labels_of(arguments.films)
    test = films.parts()["test"]
    first = runs.records[runs.of_row(BASELINE)[0]]  # the recipe of the rows, not that of a candidate
    limit = len(runs.logits(first["job"]["name"], "test"))
    result = evaluate(runs, films.labels[test[:limit]], films.table["patient"].to_numpy()[test[:limit]])
    result |= {"films": first["films"], "recipe": first["job"]["recipe"], "environment": first["environment"]}
    result["other_masks_dice"] = other_masks_dice(load(arguments.runs / "films"))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, arguments.docs / "comparison.png")
    page = arguments.docs / "comparison.md"
    begin, end = "<!-- comparison: generated by benchmarks/comparison_report.py -->", "<!-- /comparison -->"
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    page.write_text(f"{before}{begin}\n{tables(result)}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    print(tables(result))


if __name__ == "__main__":
    main()
