"""Rank-mean of the five leaderboard models whose predictions the CheXpert authors published, against radiologists.

    python benchmarks/leaderboard.py chexpert_test_labels

Reads groundtruth.csv, predictions/*.csv and benchmark_radiologists/bc4, bc6, bc8.csv, and prints mean AUC (95 % by the
bootstrap over studies) and the number of radiologists below the curve (axnet.metrics.rads_below_curve), of each model
and of the mean of their ranks. Some of the predictions lie outside [0, 1], so that there is no mean of probabilities.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))

from axnet.metrics import auc_difference, ensemble, mean_auc_interval, rads_below_curve

TASKS = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
READERS = (4, 6, 8)


def read(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Labels [N, 5], predictions [N, 5] by model, and readings [3, N, 5]."""
    truth = pd.read_csv(folder / "groundtruth.csv", index_col="Study")[TASKS]

    def of(file: Path) -> np.ndarray:
        return pd.read_csv(file, index_col="Study").loc[truth.index, TASKS].to_numpy(dtype=np.float64)

    models = {file.stem: of(file) for file in sorted((folder / "predictions").glob("*.csv"))}
    readers = np.stack([of(folder / "benchmark_radiologists" / f"bc{reader}.csv") for reader in READERS])
    return truth.to_numpy(dtype=np.float64), models, readers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    truth, models, readers = read(parser.parse_args().folder)
    rows = models | {"mean of ranks": ensemble(list(models.values()), "ranks")}
    print("| predictions | mean AUC | 95 % | radiologists below |\n|---|---|---|---|")
    for name, scores in rows.items():
        auc = mean_auc_interval(truth, scores)
        below = rads_below_curve(truth, scores, readers)[0]
        print(f"| {name} | {auc.value:.4f} | {auc.low:.4f} to {auc.high:.4f} | {below:.1f} |")
    best = max(models, key=lambda name: mean_auc_interval(truth, models[name], resamples=1).value)
    gain = auc_difference(truth, rows["mean of ranks"], models[best])
    print(f"\nmean of ranks minus {best}: {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})")


if __name__ == "__main__":
    main()
