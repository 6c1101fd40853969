"""Two processes that train together do what one does with the whole batch."""

from __future__ import annotations

import pytest
import torch
from processes import workers

from axnet.models import Preprocessing, load_classifier
from axnet.train import DataConfig, FitConfig, MeanAUROC, open_part, predict

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch was built without gloo, which connects the processes"
)


def test_the_metric_is_that_of_all_rows(computed, rows):
    whole = MeanAUROC()
    whole.update(*rows)
    assert [found["metric"] for found in computed] == [pytest.approx(float(whole.compute()))] * 2


@pytest.mark.slow
def test_a_run(tmp_path):
    data = open_part(DataConfig(train_images=63, workers=0), "train", Preprocessing(size=32))
    train, validation = data.split_by_patient(0.3)
    train, validation = train.subset(range(46)), validation.subset(range(15))  # equal parts, and parts that are not
    config = FitConfig(
        out=str(tmp_path / "out"),
        epochs=2,
        batch_size=4,
        accelerator="cpu",
        devices=2,
        progress=False,
        ema_decay=None,
        select="last",
        options={"backbone": "tiny", "reduction": 0.25},
    )
    first, second = workers.together(workers.train, tmp_path, config, (train, validation))

    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert first["steps"] == second["steps"] == 2 * (len(train) // 2 // 4)
    # an epoch: every process its own images, all of one permutation
    half = len(first["seen"]) // 2
    for epoch in (slice(0, half), slice(half, None)):
        mine, other = set(first["seen"][epoch]), set(second["seen"][epoch])
        assert len(mine) == len(other) == half
        assert not mine & other
    assert first["seen"][:half] != first["seen"][half:]

    # every film of the validation counts once, though the processes hold unequal parts
    model, info = load_classifier(tmp_path / "out" / "model.safetensors")
    whole = MeanAUROC()
    whole.update(torch.from_numpy(predict(model, validation, info.preprocessing)), validation.labels)
    assert first["val_auc"] == second["val_auc"] == pytest.approx(float(whole.compute()), abs=1e-6)

    assert "logs/metrics.csv" in first["written"]
    assert second["written"] == []
