"""What nvcc says about the CUDA kernels: registers, stack and spills of each, and its seconds a file, without a GPU.

python benchmarks/cuda_resources.py --out benchmarks/results/cuda_resources.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def find_nvcc() -> str | None:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(home / "bin"))


def compile_one(nvcc: str, source: Path, architecture: int, out: Path) -> str:
    """Compile a file; what ptxas reports of it."""
    includes = [f"-I{ROOT / 'csrc'}"]
    for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"]):
        includes += ["-isystem", path]
    command = [
        *(nvcc, "-c", str(source), "-o", str(out / f"{source.stem}.{architecture}.o"), "-O3", "-std=c++20"),
        *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "--expt-relaxed-constexpr", *includes),
        *(f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xptxas", "-v", "-Xcompiler", "-fPIC"),
    ]
    log = out / f"{source.stem}.{architecture}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # a Popen without it is waited for by the next one
    print(f"{source.name} sm_{architecture}: {usage.ru_utime + usage.ru_stime:.0f} s of a processor", file=sys.stderr)
    said = log.read_text(encoding="utf-8")
    if status:
        sys.exit(f"{source.name} does not compile for sm_{architecture}:\n{said[-8000:]}")
    return said


def kernels(report: str) -> dict[str, dict[str, int]]:
    """Registers, bytes of stack and of spills by kernel<arguments>."""
    found = {}
    for entry in report.split("Compiling entry function '")[1:]:
        mangled = entry.split("'")[0]
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        used = re.search(r"Used (\d+) registers", entry)
        if not stack or not used:
            sys.exit(f"ptxas reported '{mangled}' in a form that is not known here:\n{entry}")
        full = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
        name = re.search(r"(\w+_kernel(?:<.*?>)?)\(", full)
        key = re.sub(r"axnet::cuda::|\((?:int|bool)\)", "", name[1]) if name else mangled
        found[key] = {"registers": int(used[1]), "stack": int(stack[1]), "spills": int(stack[2]) + int(stack[3])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--out", type=Path, help="JSON; without it to the terminal")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("nvcc was not found: set CUDA_HOME or put it on PATH.")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        for architecture in arguments.architecture:
            reports = pool.map(lambda s, a=architecture: compile_one(nvcc, s, a, Path(folder)), SOURCES)
            result[f"sm_{architecture}"] = {name: v for report in reports for name, v in kernels(report).items()}
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
