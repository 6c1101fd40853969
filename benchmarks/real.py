"""Run the whole comparison on real films and record it.

    python benchmarks/real.py --nih nih_subset --organs wingspan_ctr --out benchmarks/results/real.json

--nih: NIH ChestX-ray14's files; --organs: image + organ mask set that teaches the segmenter (train part; its test part
is measured). --segmenter takes weights that were trained on --organs before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from axnet.data import OrganMaskSet
from axnet.report import environment
from axnet.segment import Segmenter, evaluate_segmenter
from axnet.train import DataConfig, DemoConfig, run_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nih", type=Path, required=True)
    parser.add_argument("--organs", type=Path, required=True)
    parser.add_argument("--segmenter", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--report", type=Path, help="folder to keep the report and the weights in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.report or Path(temporary)
        config = DemoConfig(
            out=str(folder),
            data=DataConfig(data="nih", root=str(arguments.nih)),
            size=arguments.size,
            steps=arguments.steps,
            segmenter=None if arguments.segmenter is None else str(arguments.segmenter),
            organ_root=str(arguments.organs),
            progress=False,
        )
        result = run_demo(config)
        segmenter = Segmenter.load(folder / "segmenter.safetensors")
    assessment = result.assessment
    record = {
        "environment": environment(),
        "train_images": len(config.data.source("train").ids),
        "test_images": len(config.data.source("test").ids),
        "size": config.size,
        "steps": config.steps,
        "mean_auc": {name: e.mean_auc._asdict() for name, e in assessment.evaluations.items()},
        "difference": None if assessment.difference is None else assessment.difference._asdict(),
        "classes": {name: e.to_dict() for name, e in assessment.evaluations.items()},
        "segmenter": {
            "training": segmenter.training_record,
            "test": evaluate_segmenter(segmenter, OrganMaskSet(arguments.organs, "test")),
        },
        "seconds": result.seconds,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
