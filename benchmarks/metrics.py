"""How long the bootstrap of the mean AUC takes: 1,000 resamples x 14 findings x 25,000 films, clustered by patient.

    python benchmarks/metrics.py --out benchmarks/results/metrics.json

Draws labels and scores with ties from a fixed seed, measures axnet.metrics.mean_auc_interval, and compares 3 resamples
with scikit-learn's roc_auc_score of the repeated rows, which is the plain way.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.append(str(Path(__file__).resolve().parents[1]))

from axnet.metrics import mean_auc_interval
from axnet.metrics.bootstrap import resampled_aucs
from axnet.report.environment import environment

FILMS, FINDINGS, PATIENTS, RESAMPLES = 25_000, 14, 7_000, 1000


def drawn(films: int, findings: int, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels from 0.2 to 20 % of the films, scores of an AUC near 0.76 rounded to four digits, patients."""
    rng = np.random.default_rng(0)
    y = (rng.random((films, findings)) < np.geomspace(0.002, 0.2, findings)).astype(np.float64)
    scores = np.round(1 / (1 + np.exp(-(y + rng.normal(size=y.shape)))), 4)
    return y, scores, rng.integers(0, patients, films)


def plain(y: np.ndarray, scores: np.ndarray, patients: np.ndarray, resamples: int) -> tuple[np.ndarray, float]:
    """AUCs [findings, resamples] by repeating the rows of the patients drawn, and seconds of each resample."""
    number = np.unique(patients, return_inverse=True)[1]
    units = int(number.max()) + 1
    draws = np.random.default_rng(0).integers(0, units, size=(min(RESAMPLES, 2_000_000 // len(y)), units))
    rows = [np.flatnonzero(number == unit) for unit in range(units)]
    started = time.perf_counter()
    found = []
    for draw in draws[:resamples]:
        index = np.concatenate([rows[unit] for unit in draw])
        found.append([roc_auc_score(y[index, k], scores[index, k]) for k in range(y.shape[1])])
    return np.array(found).T, (time.perf_counter() - started) / resamples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    y, scores, patients = drawn(FILMS, FINDINGS, PATIENTS)
    wall, processor = time.perf_counter(), time.process_time()
    interval = mean_auc_interval(y, scores, groups=patients, resamples=RESAMPLES)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    few, seconds = plain(y, scores, patients, 3)
    number = np.unique(patients, return_inverse=True)[1]
    ours = resampled_aucs(y, [scores], number, 0, RESAMPLES)[0, :, :3]
    record: dict[str, Any] = {
        "films": FILMS,
        "findings": FINDINGS,
        "patients": int(number.max()) + 1,
        "resamples": RESAMPLES,
        "seconds": round(wall, 2),
        "processor_seconds": round(processor, 2),
        "mean_auc": [round(value, 5) for value in interval],
        "plain_seconds_per_resample": round(seconds, 3),
        "largest_difference_to_plain": float(np.abs(ours - few).max()),
        "environment": environment(),
    }
    if record["largest_difference_to_plain"] > 1e-12:
        raise SystemExit(f"the resamples differ from the plain way by {record['largest_difference_to_plain']:.1e}")
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
