"""Build, test and measure axnet on a GPU: one command, and nothing is lost when it is cut.

    python benchmarks/gpu.py --out FOLDER

Every step is a process of its own with a limit, the most important first; every result is on disk before the next one
begins. The same command again takes up where it was cut, and takes the library that it built from FOLDER/library. At
the end FOLDER/gpu.json holds all results, FOLDER/gpu.txt a table of one screen, FOLDER/*.log what each step said.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.gpu_record import Record  # noqa: E402
from benchmarks.gpu_steps import STEPS, Work, facts  # noqa: E402

# Seconds at most, in the order of importance; what a step has left over goes to those after it.
LIMITS = {
    **{"build": 300, "facts": 60, "check": 60, "passes": 120, "test native": 120, "test triton": 180},
    **{"blocks": 180, "graph": 60, "heads": 45, "models": 200, "sanitize": 150},
}
MATRIX = (
    *("test_attention.py", "test_average.py", "test_maxima.py", "test_pooling.py", "test_registration.py"),
    "test_errors.py",
)


def run(command: list[str], log: Path, limit: float, **environment: str) -> dict[str, Any]:
    """A command with its output in a log: its exit code, seconds and last lines. After the limit it is ended."""
    started = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            *(command,), cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=file, start_new_session=True
        )
        code: int | str
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = f"stopped after {limit:.0f} s"
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    return {"code": code, "seconds": round(time.monotonic() - started, 1), "last": last}


def library_key() -> str:
    """Of what the compiled library follows from."""
    digest = hashlib.sha256(f"{torch.__version__} {sys.version} {os.environ.get('TORCH_CUDA_ARCH_LIST')}".encode())
    if torch.cuda.is_available():
        digest.update(str(torch.cuda.get_device_capability()).encode())
    for path in [ROOT / "setup.py", *sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())]:
        if path.suffix != ".pyc":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build(record: Record, device: str, limit: float) -> None:
    """Compile in place, or take the library of an earlier run."""
    kept = record.folder / "library" / library_key()
    if kept.is_dir():
        for path in kept.iterdir():
            shutil.copy2(path, ROOT / "axnet" / path.name)
        record.put("build", "library", {"code": 0, "seconds": 0, "last": ["taken from an earlier run"]})
        return
    wish = {"AXNET_CUDA": "1"} if device == "cuda" else {}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = run(command, record.folder / "build.log", limit, **wish)
    record.put("build", "library", result)
    if result["code"] == 0:
        part = kept.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for path in (ROOT / "axnet").glob("_*.so"):
            shutil.copy2(path, part / path.name)
        part.rename(kept)


def matrix(backend: str, *more: str) -> list[str]:
    """The op matrix over as many processes as pytest-xdist may start."""
    words = f"({backend} or not native and not triton)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", " and ".join((words, *more))]
    if find_spec("xdist"):
        command += ["-n", str(max(1, min(12, (os.cpu_count() or 2) - 1)))]
    return command + [str(ROOT / "tests" / "ops" / name) for name in MATRIX]


def test(record: Record, backend: str, device: str, limit: float, quick: bool) -> None:
    wish = {"AXNET_TEST_DEVICE": device, "AXNET_TEST_BACKENDS": backend, "OMP_NUM_THREADS": "1"}
    if quick:
        wish["AXNET_TEST_EVERY"] = "200"
    record.put("test", backend, run(matrix(backend), record.folder / f"test-{backend}.log", limit, **wish))


def sanitize(record: Record, device: str, limit: float) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None or device != "cuda":
        record.put("sanitize", "memcheck", "compute-sanitizer is not installed, or there is no GPU")
        return
    wish = {"AXNET_TEST_DEVICE": "cuda", "AXNET_TEST_BACKENDS": "native", "AXNET_TEST_EVERY": "61"}
    wish["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # one allocation per tensor: what lies beyond is seen
    end = time.monotonic() + limit
    for kind in ("memcheck", "racecheck"):
        if not record.has("sanitize", kind):
            command = [tool, "--tool", kind, "--error-exitcode", "9", *matrix("native", "not gradcheck", "not compile")]
            log = record.folder / f"sanitize-{kind}.log"
            record.put("sanitize", kind, run(command, log, max(5, (end - time.monotonic()) / 2), **wish))


def finished(record: Record, step: str) -> bool:
    """Whether a step has nothing left to do."""
    name, _, backend = step.partition(" ")
    if name in ("build", "facts"):
        return False  # quick, and the library may be another
    if name == "test":
        return record.has("test", backend) and not str(record.get("test", backend)["code"]).startswith("stopped")
    if name == "sanitize":
        return record.has("sanitize", "racecheck") or isinstance(record.of("sanitize").get("memcheck"), str)
    return record.of("ended").get(step) == 0


def table(record: Record) -> str:
    """All results on one screen."""
    rows = record.summary()
    lines = [str(rows.get("environment", {}).get("device", "")), ""]
    for step in ("build", "test", "sanitize", "check", "ended"):
        cells = []
        for key, value in record.of(step).items():
            said = value.get("last", [""])[-1] if isinstance(value, dict) and value.get("last") else value
            code = value["code"] if isinstance(value, dict) else value
            cells.append(f"{key} {code}" + (f" ({str(said).strip('= ')[:60]})" if step == "test" else ""))
        lines.append(f"{step:<9} {', '.join(cells)}")
    share = {(r["pass"], r["dtype"], r["layout"], r["backend"]): r["share of copy"] for r in rows.get("passes", [])}
    columns = list(dict.fromkeys(key[1:] for key in share))
    if columns:
        short = [f"{b[:3]} {d[6:10]} {layout[:4]}" for d, layout, b in columns]
        lines += ["", f"{'share of a copy, %':<18} {' '.join(f'{s:>13}' for s in short)}"]
    for name in dict.fromkeys(key[0] for key in share):
        values = [share.get((name, *c)) for c in columns]
        cells = [f"{'' if v is None else round(100 * v):>13}" for v in values]
        lines.append(f"{name:<18} {' '.join(cells)}")
    forms: dict[str, list[str]] = {}
    for r in rows.get("blocks", []):
        key = " ".join((r["task"], r["mode"], "x".join(map(str, r["shape"])), r["layout"], r["dtype"][6:]))
        forms.setdefault(key, []).append(f"{r['form']} {r['median']:.3f}" if "form" in r else r["error"][:60])
    if forms:
        lines += ["", "ms"]
    lines += [f"{key:<52} {', '.join(cells)}" for key, cells in list(forms.items())[:14]]
    for r in rows.get("graph", []):
        lines.append(
            f"{r['dtype'][6:]}: " + ", ".join(f"{n} {1e3 * t['median']:.0f} us" for n, t in r["times"].items())
        )
    for r in rows.get("heads", []):
        lines.append(f"15-gate head, {r['dtype'][6:]}: {r['speed-up']} times the published form")
    for r in rows.get("models", []):
        peak = f", {r['peak bytes'] / 1e9:.1f} GB" if r["peak bytes"] else ""
        title = f"{r['model']}, {r['films']} films of {r['side']} px, {r['mode']}"
        lines.append(f"{title:<70} {r['films per second']} films/s{peak}")
    return "\n".join(lines) + "\n"


def child(record: Record, step: str, work: Work) -> None:
    """A step in this process; raises what it raises."""
    STEPS[step](record, work)
    record.put("ended", step, "not all" if work.late() else 0)


def measured(record: Record, step: str, arguments: argparse.Namespace, limit: float) -> Record:
    """A step in a process of its own, which a fault of the device or a limit ends without the others."""
    command = [sys.executable, str(Path(__file__).resolve()), "--out", str(record.folder), "--device", arguments.device]
    command += ["--step", step, "--until", str(time.time() + 0.9 * limit), "--backends", arguments.backends]
    command += ["--quick"] * arguments.quick
    result = run(command, record.folder / f"{step}.log", limit)
    after = Record(record.folder)
    if result["code"] != 0:
        after.put("ended", step, f"{result['code']}: {' '.join(result['last'])[-200:]}")
    return after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--steps", default=",".join(LIMITS), help="comma-separated")
    parser.add_argument("--minutes", type=float, default=15, help="after which nothing more begins")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries this script out")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: tries this script out")
    parser.add_argument("--backends", default="native,triton", help="what passes and blocks time, comma-separated")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = arguments.steps.split(",")
    unknown = [step for step in steps if step not in LIMITS]
    if unknown:
        parser.error(f"--steps has {unknown[0]!r}, accepted are {', '.join(LIMITS)}")
    if not set(arguments.backends.split(",")) <= {"native", "triton"}:
        parser.error(f"--backends is {arguments.backends!r}, accepted are native and triton")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU that torch can use; --device cpu --quick tries this script out.")
    record = Record(arguments.out.resolve())
    only = tuple(arguments.backends.split(","))
    if arguments.step:
        return child(record, arguments.step, Work(arguments.device, arguments.quick, arguments.until, only))
    end = time.monotonic() + 60 * arguments.minutes
    failed = []
    for step in LIMITS:
        limit = min(LIMITS[step], end - time.monotonic())
        if step not in steps or finished(record, step):
            continue
        if limit < 5:
            print(f"no time is left for {step}; the same command goes on from here")
            break
        name, _, backend = step.partition(" ")
        try:
            if name == "build":
                build(record, arguments.device, limit)
                if record.get("build", "library")["code"] != 0:
                    failed.append(step)
            elif name == "facts":
                if list((ROOT / "axnet").glob("_C*")):  # compiled in place; else the installed axnet
                    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
                record.put("facts", "environment", facts(arguments.device))
                import axnet

                record.put("facts", "backends", axnet.info()["backends"])
            elif name == "test":
                if record.get("facts", "backends").get(f"{backend} ({arguments.device})") == "available":
                    test(record, backend, arguments.device, limit, arguments.quick)
            elif name == "sanitize":
                sanitize(record, arguments.device, limit)
            else:
                record = measured(record, step, arguments, limit)
                if str(record.of("ended").get(step)) not in ("0", "not all"):
                    failed.append(step)
        except Exception as error:  # a step that fails must not take the others with it
            traceback.print_exc()
            failed.append(step)
            record.put("ended", step, re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:300])
        record.write()
    (record.folder / "gpu.txt").write_text(table(record), encoding="utf-8")
    print(table(record))
    failed += [f"test {name}" for name, value in record.of("test").items() if value["code"] != 0]
    if failed:
        sys.exit(f"failed: {', '.join(dict.fromkeys(failed))}; {json.dumps(record.of('ended'))[:400]}")


if __name__ == "__main__":
    main()
