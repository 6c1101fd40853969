"""The CheXpert leaderboard as published, from its own labels, predictions and radiologists."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from axnet.metrics import ensemble, expert_points, mean_auc, mean_auc_interval, rads_below_curve

TASKS = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
PUBLISHED = {
    "ihil": (0.9266, 2.6),
    "drnet": (0.9255, 2.6),
    "desmond": (0.9182, 2.4),
    "hieupham": (0.9243, 2.4),
    "jfaboy": (0.9256, 2.8),
}


@pytest.fixture(scope="module")
def folder() -> Path:
    base = Path(os.environ.get("AXNET_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (base / "chexpert_test_labels").is_dir():
        pytest.skip("real data set 'chexpert_test_labels' is absent (set AXNET_DATA to its parent folder)")
    return base / "chexpert_test_labels"


@pytest.fixture(scope="module")
def truth(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "groundtruth.csv", index_col="Study")[TASKS]


@pytest.fixture(scope="module")
def radiologists(folder: Path, truth: pd.DataFrame) -> np.ndarray:
    files = [folder / "benchmark_radiologists" / f"bc{reader}.csv" for reader in (4, 6, 8)]
    return np.stack([pd.read_csv(f, index_col="Study").loc[truth.index, TASKS].to_numpy() for f in files])


@pytest.mark.parametrize("model", PUBLISHED)
def test_mean_auc_and_radiologists_below_are_the_published_ones(
    model: str, folder: Path, truth: pd.DataFrame, radiologists: np.ndarray
) -> None:
    scores = pd.read_csv(folder / "predictions" / f"{model}.csv", index_col="Study").loc[truth.index, TASKS]
    auc, below = PUBLISHED[model]
    mean, per_task = rads_below_curve(truth, scores, radiologists)
    assert round(mean_auc(truth, scores), 4) == auc
    assert round(mean, 4) == below
    assert per_task.shape == (5,)
    assert per_task.mean() == pytest.approx(mean)


def test_the_interval_of_the_winner_holds_its_mean_auc(folder: Path, truth: pd.DataFrame) -> None:
    scores = pd.read_csv(folder / "predictions" / "ihil.csv", index_col="Study").loc[truth.index, TASKS]
    interval = mean_auc_interval(truth, scores, resamples=300)
    assert round(interval.value, 4) == 0.9266
    assert 0.90 < interval.low < interval.value < interval.high < 0.95


def test_the_points_of_the_radiologists_are_rates(truth: pd.DataFrame, radiologists: np.ndarray) -> None:
    points = expert_points(truth, radiologists)
    assert points.shape == (3, 5, 2)
    first, edema = radiologists[0, :, 3], truth["Edema"].to_numpy()
    assert points[0, 3, 0] == pytest.approx(first[edema == 0].mean())
    assert points[0, 3, 1] == pytest.approx(first[edema == 1].mean())


def test_the_mean_of_ranks_is_above_every_model(folder: Path, truth: pd.DataFrame, radiologists: np.ndarray) -> None:
    files = [folder / "predictions" / f"{model}.csv" for model in PUBLISHED]
    scores = [pd.read_csv(file, index_col="Study").loc[truth.index, TASKS].to_numpy() for file in files]
    together = ensemble(scores, "ranks")
    assert round(mean_auc(truth, together), 4) == 0.9345
    assert rads_below_curve(truth, together, radiologists)[0] == 3.0
