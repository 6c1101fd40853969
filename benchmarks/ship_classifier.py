"""Make the classifier that comes with axnet out of the comparison's candidates, and measure it.

    python benchmarks/ship_classifier.py --films films --runs runs --nih-128 nih_128 --nih-subset nih_subset

The candidates are those of benchmarks/comparison.py (a GPU) or benchmarks/train_classifier.py (a CPU).

Chosen by mean AUC on the validation part of nih_128's training list, whose films are read as sharp as they are stored
and as soft as larger ones become on the way to 128 px: one of the candidates, or the mean of the weights of those that
differ in their seed or their epoch alone. The training films have more of some findings than NIH's list, so the logits
are moved until the validation films have what that list has. Temperature and operating points come from the same films,
soft ones.
Then the whole of `axnet predict` reads the test films of both sets. Writes axnet/models/weights/frontal.safetensors,
its card and benchmarks/results/classifier.json. --measure takes the weights that are there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from axnet.data import NIH_FINDINGS, NIHChestXray, PhantomXray  # noqa: E402
from axnet.memory import keep_freed_memory  # noqa: E402
from axnet.metrics import (  # noqa: E402
    calibration_error,
    mean_auc_interval,
    roc_auc,
)
from axnet.models import load_classifier, save_classifier  # noqa: E402
from axnet.models.storage import SHIPPED  # noqa: E402
from axnet.predictor import Predictor  # noqa: E402
from axnet.report.environment import environment  # noqa: E402
from axnet.train.calibrating import calibrate  # noqa: E402
from benchmarks.classifier_card import card  # noqa: E402
from benchmarks.comparison_films import Films, unpack  # noqa: E402
from benchmarks.comparison_train import LEAST, Data, logits_of, mean_auc, softened  # noqa: E402

TEST_LEAST = 15
RULE: Any = "prevalence"
REFERENCE = 0.712
"""On nih_subset's test list, nine findings: DenseNet-121 + GAP from scratch after 12 epochs on nih_subset."""


def average(files: list[Path]) -> nn.Module:
    """A classifier with the mean of the weights of several."""
    models = [load_classifier(file)[0] for file in files]
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    models[0].load_state_dict(mean)
    return models[0].eval()


def choose(runs: Path, films: Films) -> tuple[nn.Module, dict[str, Any], np.ndarray]:
    """The model that validates best, what was compared, and its logits of soft validation films."""
    device = torch.device("cpu")
    data = Data(films, device)
    rows = data.parts["validation"]
    labels = films.labels[rows]
    kinds: dict[str, list[Path]] = {}
    for file in sorted(runs.glob("candidate-*.safetensors")):
        if json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["finished"]:
            kinds.setdefault(re.sub(r"(-e\d+)?-s\d+$", "", file.stem), []).append(file)
    choices = {file.stem: [file] for files in kinds.values() for file in files}
    choices |= {f"{kind}-mean": files for kind, files in kinds.items() if len(files) > 1}
    soft = softened(data)
    found: dict[str, tuple[tuple[float, float], nn.Module, np.ndarray]] = {}
    for name, files in choices.items():
        model = average(files)
        logits = logits_of(model, soft, rows, "own", device)
        aucs = mean_auc(labels, logits_of(model, data, rows, "own", device), LEAST), mean_auc(labels, logits, LEAST)
        found[name] = aucs, model, logits
        print(f"{name:32} validation, sharp and soft: {aucs[0]:.4f} {aucs[1]:.4f}", flush=True)
    best = max(found, key=lambda name: sum(found[name][0]))
    records = [json.loads(file.with_suffix(".json").read_text(encoding="utf-8")) for file in choices[best]]
    made = max(records, key=lambda record: record["steps"])
    record = {
        "chosen": best,
        "validation": {name: [round(auc, 4) for auc in aucs] for name, (aucs, _, _) in found.items()},
        "of": [file.stem for file in choices[best]],
        **made,
    }
    return found[best][1], record, found[best][2]


def as_prevalent(model: nn.Module, logits: np.ndarray, prevalence: np.ndarray) -> np.ndarray:
    """Move the classifier's bias, and the logits [N,K], until the mean probabilities are the prevalences [K]."""
    moved = [
        brentq(lambda shift, z=z, share=share: expit(z + shift).mean() - share, -20, 20)
        for z, share in zip(logits.T.astype(np.float64), prevalence, strict=True)
    ]
    head: Any = model.classifier
    with torch.no_grad():
        head.bias += torch.tensor(moved).to(head.bias)
    return (logits + np.array(moved)).astype(np.float32)


def read(predictor: Predictor, source: NIHChestXray, batch: int = 16) -> dict[str, Any]:
    """Probabilities, calls and flags of a set by the whole pipeline, and films a second."""
    started = time.perf_counter()
    found = predictor.predict([source.path(name) for name in source.ids], batch)
    return {
        "probabilities": np.array([[one.probabilities[f] for f in NIH_FINDINGS] for one in found]),
        "flagged": float(np.mean([bool(one.flags) for one in found])),
        "calls": np.array([[one.positive.get(f, np.nan) for f in NIH_FINDINGS] for one in found]),
        "films_per_second": len(found) / (time.perf_counter() - started),
    }


def measure(predictor: Predictor, source: NIHChestXray) -> tuple[dict[str, Any], np.ndarray]:
    """Figures on one test list, and the probabilities."""
    done = read(predictor, source)
    y, p = source.labels.astype(np.float64), done["probabilities"]
    kept = y.sum(0) >= TEST_LEAST
    patients = np.array(source.patients)
    temperature = predictor.info.calibration.temperature
    raw = 1 / (1 + np.exp(-np.log(p / (1 - p)) * temperature))
    mean = mean_auc_interval(y[:, kept], p[:, kept], groups=patients)
    calls = done["calls"]
    findings = {}
    for k, finding in enumerate(NIH_FINDINGS):
        known = ~np.isnan(calls[:, k])
        yes = calls[known, k] == 1
        truth = y[known, k] == 1
        findings[finding] = {
            "positives": int(y[:, k].sum()),
            "auc": round(roc_auc(y[:, k], p[:, k]), 4),
            "calibration_error": round(calibration_error(y[:, k], p[:, k]), 4),
            "called": int(yes.sum()) if known.any() else None,
            "sensitivity": round(float(yes[truth].mean()), 4) if known.any() and truth.any() else None,
            "specificity": round(float(1 - yes[~truth].mean()), 4) if known.any() else None,
        }
    return {
        "films": len(y),
        "patients": len(set(source.patients)),
        "findings_in_mean": int(kept.sum()),
        "mean_auc": {name: round(float(value), 4) for name, value in mean._asdict().items()},
        "calibration_error": {
            "mean over findings": round(float(np.mean([calibration_error(y[:, k], p[:, k]) for k in range(14)])), 4),
            "all labels": round(calibration_error(y.ravel(), p.ravel()), 4),
            "all labels, without temperature": round(calibration_error(y.ravel(), raw.ravel()), 4),
            "mean probability": round(float(p.mean()), 4),
            "prevalence": round(float(y.mean()), 4),
        },
        "flagged": round(done["flagged"], 4),
        "films_per_second": round(done["films_per_second"], 2),
        "findings": findings,
    }, p


def at_two_sizes(predictor: Predictor, small: NIHChestXray, large: NIHChestXray, most: int = 256) -> dict[str, Any]:
    """What changes when a film comes larger: the logits' correlation and mean difference over films of both sets."""
    names = sorted(set(small.ids) & set(large.ids))[:most]
    logits = []
    for source in (small, large):
        found = predictor.predict([source.path(name) for name in names])
        p = np.array([[one.probabilities[finding] for finding in NIH_FINDINGS] for one in found])
        logits.append(np.log(p / (1 - p)))
    correlation = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(logits[0].T, logits[1].T, strict=True)]
    return {
        "films": len(names),
        "correlation": dict(zip(NIH_FINDINGS, np.round(correlation, 3).tolist(), strict=True)),
        "mean difference": dict(zip(NIH_FINDINGS, np.round((logits[1] - logits[0]).mean(0), 3).tolist(), strict=True)),
    }


def golden(predictor: Predictor, path: Path) -> None:
    """What the classifier says of three drawn films, which tests/test_shipped.py repeats."""
    stored = []
    for seed in (11, 12, 13):
        film = np.rint(PhantomXray(1, seed=seed, size=256)[0]["image"][0].numpy() * 255).astype(np.uint8)
        found = predictor.predict([film])[0]
        stored.append(
            {
                "seed": seed,
                "probabilities": {finding: round(value, 5) for finding, value in found.probabilities.items()},
                "positive": found.positive,
                "ctr": round(found.anatomy.ctr, 5),
                "flags": list(found.flags),
            }
        )
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True, help="folder that comparison.py --pack wrote")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the comparison's runs")
    parser.add_argument("--masks", type=Path, help="masks.npz of the comparison, for films packed without masks")
    parser.add_argument("--nih-128", type=Path, required=True)
    parser.add_argument("--nih-subset", type=Path, required=True)
    parser.add_argument("--measure", action="store_true", help="do not choose: measure the weights that are there")
    parser.add_argument("--weights", type=Path, default=SHIPPED / "frontal.safetensors")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "classifier.json")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden" / "frontal.json")
    arguments = parser.parse_args()
    keep_freed_memory()
    if not arguments.measure:
        films = unpack(arguments.films, 2, "cpu", arguments.masks)
        model, record, logits = choose(arguments.runs, films)
        logits = as_prevalent(model, logits, films.labels[films.table["nih_128 train"].to_numpy()].mean(0))
        labels = films.labels[films.parts()["validation"]]
        kept = f"the {len(labels)} validation films out of NIH's official training list"
        calibration = calibrate(labels, logits, RULE, films=kept)
        first = load_classifier(arguments.runs / f"{record['of'][0]}.safetensors")[1]
        save_classifier(
            arguments.weights, model.half(), first.preprocessing, NIH_FINDINGS, training=record, calibration=calibration
        )
    model, info = load_classifier(arguments.weights)
    predictor = Predictor(model, info)
    golden(predictor, arguments.golden)
    result: dict[str, Any] = {
        "environment": environment(),
        "training": info.training,
        "calibration": info.calibration.to_dict() if info.calibration else None,
        "megabytes": round(arguments.weights.stat().st_size / 1e6, 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    for name, root in (("nih_128 test", arguments.nih_128), ("nih_subset test", arguments.nih_subset)):
        source = NIHChestXray(root, "test")
        result[name], probabilities = measure(predictor, source)
        if name == "nih_subset test":
            most = np.argsort(-source.labels.sum(0), kind="stable")[:9]
            nine = [roc_auc(source.labels[:, k], probabilities[:, k]) for k in sorted(most)]
            result[name]["nine"] = {"mean_auc": round(float(np.mean(nine)), 4), "reference": REFERENCE}
    result["at two sizes"] = at_two_sizes(
        predictor, NIHChestXray(arguments.nih_128, "train_val"), NIHChestXray(arguments.nih_subset, "train_val")
    )
    print(json.dumps(result["at two sizes"], indent=1))
    arguments.weights.with_suffix(".md").write_text(card(result), encoding="utf-8")
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("nih_128 test", "nih_subset test")}, indent=1))


if __name__ == "__main__":
    main()
