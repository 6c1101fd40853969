"""What the options of `axnet fit` do on the phantom: the same films and steps, one option changed at a time.

python benchmarks/recipe.py [--steps 120] [--seeds 1]

A check that each option trains, and of which way it goes; the phantom has no wrong labels and no other hospital, so it
cannot say what smoothing, mixup or erasing gain on real films.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

from axnet.metrics import mean_auc
from axnet.models import Preprocessing
from axnet.train import Augmentation, DataConfig, FitConfig, fit, open_part, predict

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "loss focal": {"loss": "focal"},
    "loss asymmetric": {"loss": "asymmetric"},
    "loss auc-margin": {"loss": "auc-margin"},
    "sampling balanced": {"sampling": "balanced"},
    "label_smoothing 0.1": {"label_smoothing": 0.1},
    "mixup 0.2": {"mixup": 0.2},
    "gamma 0.5, noise 0.03, blur 1, erase 0.25": {
        "augmentation": Augmentation(gamma=0.5, noise=0.03, blur=1.0, erase=0.25)
    },
    "no augmentation": {"augmentation": None},
}


def main() -> None:
    """Print one JSON line per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=600)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    data = DataConfig(train_images=arguments.films, test_images=arguments.films, workers=0)
    train, test = (open_part(data, part, Preprocessing(size=arguments.size)) for part in ("train", "test"))
    for name, changes in VARIANTS.items():
        found = []
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as out:
                config = FitConfig(
                    out=out,
                    options={"backbone": "tiny", "reduction": 0.25, "num_maps": "classes"},
                    max_steps=arguments.steps,
                    batch_size=32,
                    lr=3e-3,
                    ema_decay=0.95,
                    seed=seed,
                    accelerator="cpu",
                    progress=False,
                    logs=False,
                    **changes,
                )
                result = fit(config, train)
            scores = predict(result.model, test, result.preprocessing)
            found.append(mean_auc(test.labels.numpy(), scores))
        print(json.dumps({"variant": name, "mean AUC": [round(value, 4) for value in found]}), flush=True)


if __name__ == "__main__":
    main()
