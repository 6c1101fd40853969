"""Run the demo as it comes for several seeds and record what each model reached, in how many steps and minutes.

    python benchmarks/demo_seeds.py --out benchmarks/results/demo_seeds.json

The demo's settings were chosen on seeds 0 to 6, at 1600 steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from axnet.report import environment
from axnet.train import DataConfig, DemoConfig, run_demo


def one(seed: int, minutes: float | None, steps: int) -> dict[str, Any]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = DemoConfig(
            out=folder, data=DataConfig(seed=seed), seed=seed, progress=False, minutes=minutes, steps=steps
        )
        result = run_demo(config)
        taken = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))["run"]["steps"]
    difference = result.assessment.difference
    return {
        "seed": seed,
        "mean_auc": {name: e.mean_auc._asdict() for name, e in result.assessment.evaluations.items()},
        "difference": None if difference is None else difference._asdict(),
        "classes": {
            name: {c.name: c.auc.value for c in e.classes} for name, e in result.assessment.evaluations.items()
        },
        "minutes": minutes,
        "steps": taken,
        "parameters": {name: run.parameters for name, run in result.fits.items()},
        "seconds": result.seconds,
        "total_seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=4.0, help="of a run, as axnet demo --minutes")
    parser.add_argument("--steps", type=int, help="optimizer steps of each classifier, instead of --minutes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo_seeds.json"))
    arguments = parser.parse_args()
    minutes = None if arguments.steps else arguments.minutes
    runs, where = [], environment()  # before the record itself changes the checkout
    for seed in arguments.seeds:
        runs.append(one(seed, minutes, arguments.steps or DemoConfig.steps))
        means = {name: round(value["value"], 4) for name, value in runs[-1]["mean_auc"].items()}
        print(f"seed {seed}: {means}, {runs[-1]['total_seconds']:.0f} s", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"environment": where, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
