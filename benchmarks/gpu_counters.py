"""What Nsight Compute counts in every kernel behind A3 and PWAP: benchmarks/results/h200_ncu.csv is its kind of table.

    python benchmarks/gpu_counters.py --out counters.csv [--dtypes bfloat16,float32] [--layouts NCHW,channels_last]

X = (64, 1024, 48, 48); `ncu` must be on PATH. The clocks stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

SHAPE = (64, 1024, 48, 48)
STALL = "smsp__average_warps_issue_stalled_"
COLUMNS = {
    "ms": "gpu__time_duration.sum",
    "blocks": "launch__grid_size",
    "threads": "launch__block_size",
    "registers": "launch__registers_per_thread",
    "shared_kb": "launch__shared_mem_per_block",
    "occupancy_pct": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "issue_active_pct": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "thread_instructions_per_element": "smsp__thread_inst_executed.sum",
    "l2_hit_pct": "lts__t_sector_hit_rate.pct",
    "dram_TB_per_s": "dram__bytes.sum.per_second",
}
REASONS = ("barrier", "long_scoreboard", "short_scoreboard", "wait", "math_pipe_throttle", "lg_throttle")
REASONS += ("mio_throttle", "no_instruction", "not_selected", "dispatch_stall", "branch_resolving", "drain")
SCALE = {"second": 1e3, "msecond": 1.0, "usecond": 1e-3, "nsecond": 1e-6, "s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
SCALE |= {"byte/second": 1e-12, "Kbyte/second": 1e-9, "Mbyte/second": 1e-6, "Gbyte/second": 1e-3, "Tbyte/second": 1.0}
SCALE |= {"byte/block": 1 / 1024, "Kbyte/block": 1000 / 1024, "byte/s": 1e-12, "Gbyte/s": 1e-3, "Tbyte/s": 1.0}


def launch(dtype: str, layout: str, only: str | None) -> None:
    """Every pass once in this process, between ranges that carry its name."""
    from axnet.bench.measure import passes

    calls = passes(SHAPE, layout, getattr(torch, dtype), "cuda", "native")
    for name, (_, call) in calls.items():
        if only is None or name == only:
            call()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            torch.cuda.nvtx.range_push(name)
            call()
            torch.cuda.synchronize()
            torch.cuda.nvtx.range_pop()
            torch.cuda.profiler.stop()


def counted(dtype: str, layout: str, only: str | None) -> list[dict[str, str | float]]:
    metrics = [*COLUMNS.values(), *(f"{STALL}{reason}_per_issue_active.ratio" for reason in REASONS)]
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--nvtx"]
    command += ["--csv", "--page", "raw", "--metrics", ",".join(metrics)]
    command += [sys.executable, str(Path(__file__).resolve()), "--launch", dtype, layout, *([only] if only else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode != 0 or len(lines) < 3:
        sys.exit(f"ncu failed for {dtype} {layout}: {(done.stdout + done.stderr)[-1500:]}")
    rows = list(csv.DictReader(lines))
    units, elements = rows[0], math.prod(SHAPE)
    result = []
    for row in rows[1:]:
        ranges = next((text for key, text in row.items() if "Push/Pop_Range" in key and text), "")
        name = ranges.partition(":")[2].partition(":")[0]  # DOMAIN:RANGE:...
        found: dict[str, str | float] = {"pass": name, "dtype": dtype, "layout": layout, "kernel": row["Kernel Name"]}
        for column, metric in COLUMNS.items():
            value = float((row.get(metric) or "nan").replace(",", "")) * SCALE.get(units.get(metric, ""), 1.0)
            found[column] = round(value / elements if "per_element" in column else value, 4)
        waits = {reason: row.get(f"{STALL}{reason}_per_issue_active.ratio") or "0" for reason in REASONS}
        most = sorted(((float(v.replace(",", "")), k) for k, v in waits.items()), reverse=True)[:4]
        found["stalls_per_issue"] = " ".join(f"{k}:{v:.1f}" for v, k in most)
        result.append(found)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--layouts", default="NCHW,channels_last")
    parser.add_argument("--only", help="one pass")
    parser.add_argument("--launch", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.launch:
        dtype, layout, *only = arguments.launch
        return launch(dtype, layout, only[0] if only else None)
    if arguments.out is None or not shutil.which("ncu"):
        parser.error("--out FILE is needed, and ncu (Nsight Compute) on PATH")
    rows: list[dict[str, str | float]] = []
    for dtype in arguments.dtypes.split(","):
        for layout in arguments.layouts.split(","):
            rows += counted(dtype, layout, arguments.only)
            with arguments.out.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
