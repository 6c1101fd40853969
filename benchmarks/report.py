"""Write the tables of README.md and of docs from the records in benchmarks/results.

python benchmarks/report.py            # rewrite
python benchmarks/report.py --check    # exit code 1 where they differ from the records
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks import evaluation  # noqa: E402
from benchmarks.cuda_launches import BUDGETS, COPY, MAPS, SHAPES  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
TASKS = {
    "a3": "A3 without its gate's matrices",
    "a3+mlp": "A3, the module",
    "pwap1": "PWAP, 1 map",
    "pwap14": "PWAP, 14 maps",
}


def load(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def origin(environment: dict[str, Any]) -> str:
    keys = ("CPU", "cpu", "torch", "commit", "git commit", "date")
    flat: dict[str, Any] = {}
    for key, value in environment.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return ", ".join(
        f"{key} {flat[key]}" if key not in ("CPU", "cpu") else str(flat[key]) for key in keys if flat.get(key)
    )


def speed(name: str = "cpu.json") -> str:
    record = load(name)
    if record is None:
        return "Not yet measured.\n"
    ratio = {(r["task"], r["mode"], r["form"]): r for r in record["summary"]}
    shapes = sorted({"x".join(map(str, r["shape"])) for r in record["records"]})
    lines = [
        "How many times faster than the other form: geometric mean (least) over the shapes and both layouts.",
        "",
        "| float32, CPU | | eager PyTorch | torch.compile | torch.compile, axnet too | published form |",
        "|---|---|---|---|---|---|",
    ]
    for task, title in TASKS.items():
        for mode in ("eval", "training"):
            cells = [ratio.get((task, mode, form)) for form in ("eager", "compile", "compile, both", "peers")]
            shown = ["" if c is None else f"{c['mean']:.1f} ({c['least']:.1f})" for c in cells]
            lines.append(f"| {title} | {'forward' if mode == 'eval' else 'forward + backward'} | {' | '.join(shown)} |")
    lines += ["", f"Shapes {', '.join(shapes)}; {origin(record['environment'])}."]
    return "\n".join(lines) + "\n"


def demo() -> str:
    record = load("demo_seeds.json")
    if record is None:
        return "Not yet measured.\n"
    runs = record["runs"]
    names = list(runs[0]["mean_auc"])
    lines = [
        "Mean AUC on the phantom's test set, with 95 % intervals over patients; same images, steps and optimizer:",
        "",
        f"| seed | steps, minutes | {' | '.join(names)} | difference |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for run in runs:
        cells = [interval(run["mean_auc"][name]) for name in names]
        took = f"{run['steps']}, {run['total_seconds'] / 60:.1f}"
        lines.append(f"| {run['seed']} | {took} | {' | '.join(cells)} | {interval(run['difference'], sign=True)} |")
    lines += ["", f"`python benchmarks/demo_seeds.py`; {origin(record['environment'])}."]
    return "\n".join(lines) + "\n"


def real() -> str:
    record = load("real.json")
    if record is None:
        return "Real films: not yet measured.\n"
    names = list(record["mean_auc"])
    cells = "; ".join(f"{name} {interval(record['mean_auc'][name])}" for name in names)
    return (
        f"On {record['train_images']} training and {record['test_images']} test films of a small, enriched NIH subset "
        f"(absolute values are not comparable to published ones), {record['steps']} steps from scratch at "
        f"{record['size']} px: mean AUC {cells}; difference {interval(record['difference'], sign=True)}. "
        f"{origin(record['environment'])}.\n"
    )


def segmenter() -> str:
    record = load("segmenter.json")
    if record is None:
        return "Not yet measured.\n"
    lines = ["| test films (40, at 256 px) | left lung | right lung | heart |", "|---|---|---|---|"]
    organs = record["organs"]
    for measure, form in (("Dice", "{:.3f}"), ("HD95", "{:.1f} px")):
        cells = [form.format(record["test"][organ][measure]) for organ in organs]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    for name, changed in record["robustness"].items():
        cells = [f"{changed[organ]:.3f}" for organ in organs]
        lines.append(f"| Dice, {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Mean absolute error of the cardiothoracic ratio {record['test']['heart']['CTR error']:.4f}; "
        f"{record['robustness']['inverted']['flagged as inverted']:.0%} of negatives recognised; "
        f"{record['images_per_second']:.0f} films a second with all checks; {origin(record['environment'])}.",
    ]
    return "\n".join(lines) + "\n"


GPU_RECORDS = ("gpu.json", "h200_2026-11-27.json")  # the newest first


def gpu_record() -> dict[str, Any] | None:
    return next((record for record in map(load, GPU_RECORDS) if record is not None), None)


def gpu() -> str:
    record = gpu_record()
    if record is None:
        return "**Not yet measured on a GPU.**\n"
    return gpu_tables(record)


def gpu_tables(record: dict[str, Any]) -> str:
    """Shares of a copy's bandwidth by kernel; speed-ups of the faster of our backends over the other forms by task."""
    rate = record["copy bytes per second"]
    backends = sorted({row["backend"] for row in record["passes"]})
    lines = [f"Share of a copy's bandwidth ({rate / 1e12:.1f} TB/s), NCHW / channels_last:", ""]
    lines += [f"| kernel, type | {' | '.join(backends)} |", "|---|" + "---|" * len(backends)]
    share = {(r["pass"], r["dtype"], r["backend"], r["layout"]): r["share of copy"] for r in record["passes"]}
    for name, dtype in dict.fromkeys((r["pass"], r["dtype"]) for r in record["passes"]):
        pairs = [[share.get((name, dtype, b, layout)) for layout in ("NCHW", "channels_last")] for b in backends]
        cells = [" / ".join("-" if v is None else f"{v:.0%}" for v in pair) for pair in pairs]
        lines.append(f"| {name}, {dtype.removeprefix('torch.')} | {' | '.join(cells)} |")
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for r in record.get("blocks", []):
        if "form" in r:
            key = (r["task"], r["mode"], "x".join(map(str, r["shape"])), r["layout"], r["dtype"].removeprefix("torch."))
            times.setdefault(key, {})[r["form"]] = r["median"]
    others = [f for f in dict.fromkeys(f for row in times.values() for f in row) if f not in ("native", "triton")]
    lines += ["", "How many times faster than:", "", f"| task | ours, ms | {' | '.join(others)} |"]
    lines.append("|---|---|" + "---|" * len(others))
    for key, row in times.items():
        name, own = min(((f, row[f]) for f in ("native", "triton") if f in row), key=lambda pair: pair[1])
        cells = [f"{row[f] / own:.1f}" if f in row else "" for f in others]
        lines.append(f"| {' '.join(key)} | {own:.3f} ({name}) | {' | '.join(cells)} |")
    lines += ["", f"{gpu_origin(record)}.", *record.get("notes", [])]
    return "\n".join(lines) + "\n"


def gpu_origin(record: dict[str, Any]) -> str:
    return f"{record['environment']['device']}; {origin(record['environment'])}"


def gpu_short() -> str:
    """What the newest record of a GPU says, for the README."""
    record = gpu_record()
    if record is None:
        return "**Not yet measured on a GPU.**\n"
    share = {
        (r["pass"], r["backend"]): r["share of copy"]
        for r in record["passes"]
        if "bfloat16" in r["dtype"] and r["layout"] == "NCHW"
    }
    shown = []
    for name in ("descriptors", "moments", "gate + norm", "backward sums", "backward input", "pwap, 1", "pwap, 14"):
        cells = [f"{share[name, b]:.0%} ({b})" for b in ("native", "triton") if (name, b) in share]
        shown.append(f"{name} {', '.join(cells)}")
    forms = {
        (r["task"], r["mode"], r["form"]): r["median"]
        for r in record["blocks"]
        if "form" in r
        and tuple(r["shape"]) == (64, 1024, 48, 48)
        and r["layout"] == "NCHW"
        and "bfloat16" in r["dtype"]
    }
    eval_ms = {form: ms for (task, mode, form), ms in forms.items() if (task, mode) == ("a3+mlp", "eval")}
    times = ", ".join(f"{form} {ms:.2f} ms" for form, ms in sorted(eval_ms.items(), key=lambda pair: pair[1]))
    head = next((r["speed-up"] for r in record.get("heads", []) if "bfloat16" in r["dtype"]), None)
    lines = [
        f"**Measured on a GPU** ({gpu_origin(record)}), bfloat16, NCHW, (64, 1024, 48, 48): share of a copy's "
        f"bandwidth: {'; '.join(shown)}. A3 with its gate in inference: {times}."
    ]
    if head is not None:
        lines.append(f"15 gates on one X, averaged: {head:.1f} times the published form.")
    return " ".join(lines) + "\n"


def judge_kernels() -> str:
    """The judge's rows against what Nsight Compute counted and timed."""
    record: Any = load("cuda_model_e58de9a.json")
    with (RESULTS / "h200_ncu.csv").open(newline="", encoding="utf-8") as file:
        seen = {(m["pass"], m["dtype"], m["layout"], m["kernel"]): m for m in csv.DictReader(file)}
    lines = ["| pass | kernel | layout | instructions an element: H200, judge | ms: H200, judge | ratio |"]
    lines.append("|---|---|---|---|---|---|")
    ratios, counted = [], 0
    for r in record:
        m = seen.get((r["name"], r["dtype"], r["layout"], r["kernel"]))
        if m:
            ratios.append(r["predicted_ms"] / float(m["ms"]))
            count = float(m["thread_instructions_per_element"])
            counted += abs(r["issued"] - count) <= max(0.15 * count, 0.05)  # the record has one decimal
            counts = f"{m['thread_instructions_per_element']}, {r['issued']:.1f}"
            cells = (r["name"], f"`{r['kernel']}`", r["layout"], counts, f"{m['ms']}, {r['predicted_ms']:.3f}")
            lines.append(f"| {' | '.join(cells)} | {ratios[-1]:.2f} |")
    lines += ["", f"{counted} of {len(ratios)} counts within 15 %; {scatter(ratios)}"]
    return "\n".join(lines) + "\n"


def scatter(ratios: list[float]) -> str:
    """How the predicted times lie around the measured ones."""
    edges = (0, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3, 1.4, math.inf)
    lines = ["", "| predicted / measured time | rows |", "|---|---|"]
    for low, high in pairwise(edges):
        count = sum(low <= v < high for v in ratios)
        name = f"below {high}" if low == 0 else f"{low} and more" if high == math.inf else f"{low} to {high}"
        lines.append(f"| {name} | {'*' * count} {count} |")
    near = sum(abs(v - 1) <= 0.3 for v in ratios)
    return "\n".join([f"{near} of {len(ratios)} times within 30 %.", *lines])


def predicted_ms(record: Any) -> dict[tuple[str, str, str], float]:
    """By pass, type and layout: the sum of its kernels."""
    found: dict[tuple[str, str, str], float] = {}
    for r in record:
        key = (r["name"], r["dtype"], r["layout"])
        found[key] = found.get(key, 0.0) + r["predicted_ms"]
    return found


def judge_passes() -> str:
    """The present kernels by pass: what is asked of them, what the judge predicts, what a device measured.

    The times around the measured ones are of the kernels that were measured.
    """
    record: Any = load("cuda_model.json")
    then = predicted_ms(load("cuda_model_fa4bc37.json"))
    device = gpu_record() or {"passes": []}
    native = [r for r in device["passes"] if r["backend"] == "native"]
    measured = {(r["pass"], r["dtype"].removeprefix("torch."), r["layout"]): 100 * r["share of copy"] for r in native}
    lines = ["| pass | type | layout | instructions an element: at most, predicted | predicted ms | bound by |"]
    lines[0] += " share of a copy: asked, predicted, measured | misses |"
    lines.append("|---|---|---|---|---|---|---|---|")
    ratios = []
    for key in dict.fromkeys((r["name"], r["dtype"], r["layout"]) for r in record):
        mine = [r for r in record if (r["name"], r["dtype"], r["layout"]) == key]
        most, least = (values[key[1] == "float32"] for values in BUDGETS[key[0]])
        ms, count = sum(r["predicted_ms"] for r in mine), sum(r["issued"] for r in mine)
        size = math.prod(mine[0]["shape"]) * (2 if key[1] == "bfloat16" else 4) * MAPS[key[0]]
        share, seen = 100 * size / COPY / ms * 1e3, measured.get(key)
        longest = max(mine, key=lambda r: r["predicted_ms"])
        bound = max(("bytes", "issue", "tensor", "latency"), key=lambda b: longest[f"{b}_ms"])
        misses = ["instructions"] * (count > most) + ["predicted share"] * (share < least)
        misses += ["measured share"] * (seen is not None and seen < 0.9 * least)
        if seen is not None:
            ratios.append(seen / (100 * size / COPY / then[key] * 1e3))
        shares = f"{least}, {share:.0f}, {'-' if seen is None else format(seen, '.0f')} %"
        asked = "any" if most == math.inf else f"{most:g}"
        cells = (*key, f"{asked}, {count:.1f}", f"{ms:.3f}", bound, shares, ", ".join(misses) or "-")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Of a device 0.9 times the share is asked.",
        "",
        f"As they were measured (fa4bc37): {scatter(ratios)}",
    ]
    return "\n".join(lines) + "\n"


def judge_small() -> str:
    """The same at smaller shapes: executed instructions an element, and the share of a copy."""
    record: Any = load("cuda_model_small.json")
    if record is None:
        return "Not yet recorded.\n"
    found: dict[tuple[str, str, str], dict[tuple[int, ...], list[Any]]] = {}
    for r in record:
        found.setdefault((r["name"], r["dtype"], r["layout"]), {}).setdefault(tuple(r["shape"]), []).append(r)
    shapes = SHAPES[1:]
    lines = [f"| pass | type | layout | at most | {' | '.join(str(shape) for shape in shapes)} |"]
    lines.append("|---|---|---|---|" + "---|" * len(shapes))
    for key, by_shape in found.items():
        most = BUDGETS[key[0]][0][key[1] == "float32"]
        cells = [*key, "any" if most == math.inf else f"{most:g}"]
        for shape in shapes:
            rows = by_shape[shape]
            count, ms = sum(r["issued"] for r in rows), sum(r["predicted_ms"] for r in rows)
            size = math.prod(shape) * (2 if key[1] == "bfloat16" else 4) * MAPS[key[0]]
            over = count > most * (2 if shape[2:] == (7, 7) else 1)
            cells.append(f"{'**' * over}{count:.1f}{'**' * over}, {100 * size / COPY / ms * 1e3:.0f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def registers() -> str:
    record = load("cuda_resources.json")
    if record is None:
        return "Not yet recorded.\n"
    lines = [f"| kernel, arguments | {' | '.join(record)} |", "|---|" + "---|" * len(record)]
    for name in next(iter(record.values())):
        if "Half" not in name and "double" not in name:
            lines.append(f"| `{name}` | {' | '.join(str(used[name]['registers']) for used in record.values())} |")
    return "\n".join(lines) + "\n"


def dropin() -> str:
    record = load("dropin.json")
    if record is None:
        return "Not yet measured.\n"
    lines = [
        "| head | images | evaluation | training step | kept for backward | peak of a step |",
        "|---|" + "---|" * 5,
    ]
    for row in record["rows"]:
        memory = " | ".join("{} to {} MB".format(*row[f"{n}, MB"]) for n in ("kept for backward", "peak of a step"))
        lines.append(f"| {row['case']} | {row['batch']} | {row['eval']}x | {row['training']}x | {memory} |")
    clock = "processor time of the process" if record["clock"] == "process" else "wall time"
    lines += ["", f"float32, {record['threads']} thread, {clock}; {origin(record['environment'])}."]
    return "\n".join(lines) + "\n"


def label_efficiency() -> str:
    record = load("label_efficiency.json")
    if record is None:
        return "Not yet measured.\n"
    organs = ("left_lung", "right_lung", "heart")
    runs: dict[tuple[str, int], dict[int, float]] = {}
    for run in record["runs"]:
        mean = sum(run[organ] for organ in organs) / len(organs)
        runs.setdefault((run["method"], run["labels"]), {})[run["seed"]] = mean
    lines = ["| films with masks | supervised | mean teacher | difference, seed by seed |", "|---|---|---|---|"]
    for labels in sorted({labels for _, labels in runs}):
        one, other = runs.get(("supervised", labels), {}), runs.get(("mean teacher", labels), {})
        seeds = sorted(one.keys() & other.keys())
        if seeds:
            gains = [other[seed] - one[seed] for seed in seeds]
            means = [sum(method[seed] for seed in seeds) / len(seeds) for method in (one, other)]
            shown = ", ".join(f"{gain:+.3f}" for gain in gains)
            lines.append(f"| {labels} | {means[0]:.3f} | {means[1]:.3f} | {sum(gains) / len(gains):+.3f} ({shown}) |")
    return "\n".join([*lines, "", f"{origin(record['environment'])}."]) + "\n"


def interval(value: dict[str, float], sign: bool = False) -> str:
    form = "{:+.3f}" if sign else "{:.3f}"
    return f"{form.format(value['value'])} ({form.format(value['low'])} to {form.format(value['high'])})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    pages = {
        "README.md": {"speed": speed, "gpu": gpu_short, "demo": demo, "real": real, "segmenter": segmenter},
        "docs/performance.md": {
            "speed-xeon": partial(speed, "cpu_xeon.json"),
            "gpu": gpu,
            "registers": registers,
            "judge": judge_kernels,
            "predicted": judge_passes,
            "predicted-small": judge_small,
        },
        "docs/dropin.md": {"dropin": dropin},
        "docs/segmentation.md": {"label-efficiency": label_efficiency},
        "docs/evaluation.md": {
            "localisation": evaluation.localisation,
            "label-quality": evaluation.label_quality,
            "metrics-speed": evaluation.speed,
        },
    }
    for name, blocks in pages.items():
        page = ROOT / name
        before = after = page.read_text(encoding="utf-8")
        for block, written in blocks.items():
            table = written()
            pattern = re.compile(rf"(<!-- {block}: .*?-->\n).*?(<!-- /{block} -->)", re.DOTALL)
            if not pattern.search(after):
                sys.exit(f"{name} has no place for '{block}'")
            after = pattern.sub(lambda m, t=table: m[1] + t + m[2], after)
        if check and after != before:
            sys.exit(f"{name} differs from benchmarks/results: run python benchmarks/report.py")
        if not check:
            page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
