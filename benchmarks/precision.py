"""What bfloat16 and int8 gain and cost on a CPU: the classifier that comes with axnet, on real films.

`python benchmarks/precision.py --root nih_128 [--out FILE]` (needs the extra [export]): latency and AUC on the test
list of an NIH ChestX-ray14 folder, with masks of the segmenter that comes with axnet. bfloat16 is torch's autocast, or
the folded network cast whole. int8 is onnxruntime's: static (activations and weights per channel, calibrated on films
of the training list) and dynamic (weights; activations by their range at run time); and, where it is installed,
torchao's dynamic one, which takes nn.Linear and raises for nn.Conv2d. `--forms` names some of these alone. One thread;
times are of the processor, in turns.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from axnet import segment
from axnet.export import Program, export, fold
from axnet.metrics import mean_auc, roc_auc
from axnet.models import load_classifier
from axnet.predictor import shipped
from axnet.report.environment import environment
from axnet.train import DataConfig, collect, with_predicted_masks
from axnet.train.data import XraySet

Run = Callable[[Tensor, Tensor], np.ndarray]
BASE = "float32, torch"
LEAST = 15  # positives that a finding needs for its AUC to count


def pairs(data: XraySet, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(data), batch):
        rows = slice(start, start + batch)
        yield data.images[rows].float() / 255, data.masks[rows].float() / 255


def onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image, mask: session.run(["logits"], {"image": image.numpy(), "mask": mask.numpy()})[0]


def quantised(path: Path, films: XraySet, folder: Path) -> tuple[Path, Path]:
    """The convolutions of an ONNX program in int8: static, dynamic."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = pairs(films, 1)

        def get_next(self) -> dict[str, np.ndarray] | None:
            pair = next(self.left, None)
            return None if pair is None else {"image": pair[0].numpy(), "mask": pair[1].numpy()}

    ready, static, dynamic = (folder / f"{name}.onnx" for name in ("ready", "static", "dynamic"))
    quant_pre_process(path, ready, skip_symbolic_shape=True)
    quantization.quantize_static(
        ready,
        static,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=["Conv"],
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    # onnxruntime runs the convolutions of dynamic quantisation with unsigned weights alone
    quantization.quantize_dynamic(
        ready, dynamic, op_types_to_quantize=["Conv"], weight_type=quantization.QuantType.QUInt8
    )
    return static, dynamic


def forms(folder: Path, calibration: XraySet, wanted: list[str] | None) -> dict[str, Run]:
    """The network in every form, or in those wanted and as it is."""
    model, info = load_classifier(shipped())
    lean = Program(fold(model).model, info).eval().to(memory_format=torch.channels_last)
    program = Program(model, info).eval()
    narrow = copy.deepcopy(lean).bfloat16()

    def torch_run(module: torch.nn.Module, kind: torch.dtype) -> Run:
        def run(image: Tensor, mask: Tensor) -> np.ndarray:
            with torch.inference_mode():
                return module(image.to(kind), mask.to(kind))[0].float().numpy()

        return run

    def autocast(image: Tensor, mask: Tensor) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return torch_run(lean, torch.float32)(image, mask)

    runs = {
        BASE: torch_run(program, torch.float32),
        "float32, folded, channels_last": torch_run(lean, torch.float32),
        "bfloat16 autocast, folded, channels_last": autocast,
        "bfloat16, folded, channels_last": torch_run(narrow, torch.bfloat16),
    }
    if importlib.util.find_spec("torchao") is not None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        eight = copy.deepcopy(lean)
        quantize_(eight, Int8DynamicActivationInt8WeightConfig())
        runs["int8 dynamic, torchao, folded, channels_last"] = torch_run(eight, torch.float32)
    if wanted is not None and not any("onnxruntime" in name for name in wanted):
        return {name: run for name, run in runs.items() if name == BASE or name in wanted}
    exported = folder / "float32.onnx"
    export(shipped(), exported, "onnx")
    static, dynamic = quantised(exported, calibration, folder)
    runs |= {
        "float32, onnxruntime": onnx_run(exported),
        "int8 static, onnxruntime": onnx_run(static),
        "int8 dynamic, onnxruntime": onnx_run(dynamic),
    }
    return {name: run for name, run in runs.items() if wanted is None or name == BASE or name in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--films", type=int, help="of the test list, without it all")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--forms", nargs="+", metavar="NAME", help="of the rows, without it all")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, info = load_classifier(shipped())
    config = DataConfig("nih", options.root, workers=0)
    drawer = segment.load_pretrained()

    def films(part: str, count: int | None) -> XraySet:
        data = collect(config.source(part, size=info.preprocessing.size), info.preprocessing, on_demand=True)
        if count is not None:
            chosen = np.random.default_rng(0).permutation(len(data))[:count]
            data = data.subset(sorted(chosen.tolist()))
        return with_predicted_masks(data, drawer)

    test = films("test", options.films)
    with tempfile.TemporaryDirectory() as folder:
        runs = forms(Path(folder), films("train", options.calibration), options.forms)
        found = {
            name: np.concatenate([run(*pair) for pair in pairs(test, options.batch)]) for name, run in runs.items()
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        one = next(pairs(test, 1))
        for _ in range(options.rounds):
            for name, run in runs.items():
                start = time.process_time()
                run(*one)
                times[name].append(1e3 * (time.process_time() - start))
    order = [test.findings.index(name) for name in info.classes]
    labels = test.labels.numpy()[:, order]
    counted = np.nansum(labels == 1, axis=0) >= LEAST
    wanted = found[BASE]
    aucs = {
        name: [roc_auc(labels[:, k], logits[:, k]) for k in np.flatnonzero(counted)] for name, logits in found.items()
    }
    base = np.array(aucs[BASE])
    result = {
        "environment": environment(),
        "films": f"{len(test)} of the test list, {int(counted.sum())} findings with at least {LEAST} positives",
        "calibration films": options.calibration,
        "forms": {
            name: {
                "processor ms of one film": round(statistics.median(times[name]), 2),
                "mean AUC": round(mean_auc(labels[:, counted], logits[:, counted]), 4),
                "largest change of a finding's AUC": round(float(np.abs(np.array(aucs[name]) - base).max()), 4),
                "largest change of a logit": round(float(np.abs(logits - wanted).max()), 4),
            }
            for name, logits in found.items()
        },
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
