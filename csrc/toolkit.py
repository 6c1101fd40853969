"""Where the CUDA toolkit and its runtime library lie, and whether a program of one line compiles and links with them.

Toolkits differ: `lib64` (NVIDIA's installer), `lib` (conda, pip), `targets/x86_64-linux/lib`, the system's own folders
(Debian), and an nvcc on PATH may be a script far away from all of them. So nvcc is asked, and what it says is tried.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = """#include <cuda_runtime.h>
__global__ void kernel(int* p) { *p = 1; }
extern "C" int probe() { kernel<<<1, 1>>>(nullptr); return static_cast<int>(cudaGetLastError()); }
"""


@dataclass
class Toolkit:
    """nvcc with what it needs; `problem` says in one sentence why it cannot be used."""

    nvcc: str = ""
    home: str = ""
    version: str = ""
    libraries: list[str] = field(default_factory=list)
    """Folders that hold libcudart, first the one to link with."""
    runtime: str = ""
    """The library itself."""
    problem: str = ""


def output(*command: str, **environment: str) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout


def compilers(torch_folder: Path) -> Iterator[str]:
    """nvcc as the user names it, as PATH has it, as conda, Linux and pip put it."""
    named = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) / "bin" / "nvcc" for home in named if home]
    on_path = shutil.which("nvcc")
    places += [Path(on_path)] if on_path else []
    if os.environ.get("CONDA_PREFIX"):
        places.append(Path(os.environ["CONDA_PREFIX"]) / "bin" / "nvcc")
    places += [Path("/usr/local/cuda/bin/nvcc"), Path("/usr/lib/nvidia-cuda-toolkit/bin/nvcc")]
    places += sorted((torch_folder.parent / "nvidia").glob("cu*/bin/nvcc"))
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            yield str(place)


def folders(said: str, home: str, torch_folder: Path) -> list[str]:
    """Every folder that may hold the runtime library, likeliest first."""
    listed = re.search(r"#\$ LIBRARIES=(.*)", said)
    found = [Path(word[2:]) for word in shlex.split(listed[1])] if listed else []
    found += [Path(home) / "lib64", Path(home) / "lib", *sorted(Path(home).glob("targets/*/lib"))]
    if os.environ.get("CONDA_PREFIX"):
        prefix = Path(os.environ["CONDA_PREFIX"])
        found += [prefix / "lib", *sorted(prefix.glob("targets/*/lib"))]
    found += [Path(word) for word in os.environ.get("LIBRARY_PATH", "").split(os.pathsep) if word]
    found += [*sorted(Path("/usr/lib").glob("*-linux-gnu")), Path("/usr/lib64")]
    site = torch_folder.parent / "nvidia"
    found += [*sorted(site.glob("cu*/lib")), site / "cuda_runtime" / "lib"]
    kept = [str(path.resolve()) for path in found if path.is_dir() and path.name != "stubs"]
    return list(dict.fromkeys(kept))


def linkable(libraries: list[str], keep: Path) -> tuple[list[str], str]:
    """Folders to link with and the runtime; where only libcudart.so.N exists, a link to it is made in `keep`."""
    for folder in libraries:
        if (Path(folder) / "libcudart.so").exists():
            return [folder], str(Path(folder) / "libcudart.so")
    for folder in libraries:
        for versioned in sorted(Path(folder).glob("libcudart.so.*")):
            keep.mkdir(parents=True, exist_ok=True)
            link = keep / "libcudart.so"
            link.unlink(missing_ok=True)
            link.symlink_to(versioned)
            return [str(keep), folder], str(versioned)
    return [], ""


def first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wanted = [line for line in lines if re.search(r"error|cannot find|not found|fatal", line, re.I)]
    return (wanted or lines or ["no message"])[0][:200]


def probe(toolkit: Toolkit, compiler: list[str], flags: list[str]) -> str:
    """Why a program of one line does not compile or link, or an empty string."""
    with tempfile.TemporaryDirectory() as name:
        source, result, library = (Path(name) / n for n in ("probe.cu", "probe.o", "probe.so"))
        source.write_text(PROGRAM, encoding="utf-8")
        host = ["-ccbin", compiler[-1]]
        code, said = output(toolkit.nvcc, "-c", str(source), "-o", str(result), "-Xcompiler", "-fPIC", *host, *flags)
        if code:
            return f"{toolkit.nvcc} does not compile a kernel of one line: {first_error(said)}"
        if not toolkit.libraries:
            return f"the runtime library libcudart was found neither in the toolkit of {toolkit.nvcc} nor beside torch"
        search = [f"-L{folder}" for folder in toolkit.libraries]
        code, said = output(*compiler, "-shared", str(result), *search, "-lcudart", "-o", str(library))
        if code:
            return f"a kernel of one line compiles but does not link with {toolkit.runtime}: {first_error(said)}"
    return ""


def find(torch_folder: Path, cuda: str, keep: Path, compiler: list[str], flags: list[str]) -> Toolkit:
    """The first toolkit that works for a torch built for CUDA `cuda`; else the likeliest, with its problem."""
    failed = Toolkit(problem="nvcc was not found; install the CUDA toolkit and put nvcc on PATH or set CUDA_HOME")
    for nvcc in dict.fromkeys(compilers(torch_folder)):
        code, said = output(nvcc, "--version")
        version = re.search(r"release (\d+\.\d+)", said)
        toolkit = Toolkit(nvcc, version=version[1] if version else "")
        if code or not version:
            toolkit.problem = f"{nvcc} --version fails: {first_error(said)}"
        elif version[1].split(".")[0] != cuda.split(".")[0]:
            toolkit.problem = f"{nvcc} is of CUDA {version[1]}, torch was built for CUDA {cuda}"
        else:
            with tempfile.NamedTemporaryFile(suffix=".cu") as empty:
                _, said = output(nvcc, "--dryrun", "-c", empty.name, "-o", os.devnull)
            top = re.search(r"#\$ TOP=(.*)", said)
            toolkit.home = str(Path(top[1].strip() if top else Path(nvcc).parent.parent).resolve())
            own = Path(toolkit.home) / "bin" / "nvcc"
            toolkit.nvcc = str(own) if own.is_file() else nvcc
            toolkit.libraries, toolkit.runtime = linkable(folders(said, toolkit.home, torch_folder), keep)
            toolkit.problem = probe(toolkit, compiler, flags)
            if not toolkit.problem:
                return toolkit
        if not failed.nvcc:
            failed = toolkit
    return failed


if __name__ == "__main__":  # what a build would use
    import torch

    place = Path(torch.__file__).parent
    print(find(place, torch.version.cuda or sys.argv[1], Path(tempfile.mkdtemp()), ["c++"], []))
