"""The build: how a CUDA toolkit is found and tried, and the sources against the headers of the oldest torch."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "csrc"))

import toolkit  # noqa: E402

needs_gcc = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the imitated nvcc calls g++ on Linux"
)

NVCC = """#!/bin/sh
top=$(dirname "$(dirname "$(readlink -f "$0")")")
case "$*" in
  *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  *--dryrun*) echo '#$ TOP='"$top" ; echo '#$ LIBRARIES=  "-L'"$top"'/said"' ;;
  *) while [ "$1" != "-o" ]; do shift; done
     echo 'extern "C" int cudaGetLastError(); extern "C" int probe() { return cudaGetLastError(); }' |
       g++ -x c++ -fPIC -c - -o "$2" ;;
esac
"""


@pytest.fixture
def imitation(tmp_path, monkeypatch):
    """A toolkit whose nvcc is a script; call it with the folder and the name of its runtime library."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX", "LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolkit, "compilers", lambda torch_folder: [str(tmp_path / "cuda" / "bin" / "nvcc")])
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC)
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)

    def make(folder: str | None, name: str = "libcudart.so") -> toolkit.Toolkit:
        if folder:
            place = tmp_path / folder
            place.mkdir(parents=True, exist_ok=True)
            source = 'extern "C" int cudaGetLastError() { return 0; }'
            command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(place / name)]
            subprocess.run(command, input=source, text=True, check=True)
        return toolkit.find(tmp_path / "site" / "torch", "13.0", tmp_path / "keep", ["g++"], ["-std=c++20"])

    return make


@needs_gcc
@pytest.mark.parametrize(
    "folder", ["cuda/lib64", "cuda/lib", "cuda/targets/x86_64-linux/lib", "cuda/said", "site/nvidia/cu13/lib"]
)
def test_the_runtime_is_found_where_toolkits_keep_it(imitation, tmp_path, folder):
    found = imitation(folder)
    assert found.problem == ""
    assert found.libraries == [str(tmp_path / folder)]
    assert (found.home, found.version) == (str(tmp_path / "cuda"), "13.0")


@needs_gcc
def test_a_runtime_without_its_plain_name_links(imitation, tmp_path):
    # torch's wheels carry libcudart.so.13 alone
    found = imitation("site/nvidia/cu13/lib", "libcudart.so.13")
    assert found.problem == ""
    assert found.runtime.endswith("libcudart.so.13")


@needs_gcc
def test_conda(imitation, tmp_path, monkeypatch):
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    assert imitation("conda/lib").problem == ""


@needs_gcc
def test_what_is_missing_is_said(imitation, tmp_path, monkeypatch):
    monkeypatch.setattr(toolkit, "folders", lambda *_: [])
    assert "libcudart was found neither" in imitation(None).problem
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.write_text(NVCC.replace("release 13.0", "release 12.4"))
    assert "is of CUDA 12.4, torch was built for CUDA 13.0" in imitation(None).problem
    nvcc.write_text("#!/bin/sh\necho 'fatal: no licence'; exit 3\n")
    assert "no licence" in imitation(None).problem


def test_no_compiler_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(toolkit, "compilers", lambda torch_folder: [])
    assert "nvcc was not found" in toolkit.find(tmp_path, "13.0", tmp_path, ["g++"], []).problem


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_a_script_on_path_is_not_taken_for_the_toolkit(tmp_path, monkeypatch):
    real = shutil.which("nvcc")
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    version = toolkit.output(str(real), "--version")[1].partition("release ")[2].partition(",")[0]
    found = toolkit.find(tmp_path / "torch", version, tmp_path / "keep", ["g++"], [])
    assert found.problem == ""
    assert not found.home.startswith(str(tmp_path))


@pytest.mark.slow
@needs_gcc
def test_sources_compile_against_the_oldest_torch():
    # AXNET_OLD_TORCH_INCLUDE: torch/include of the oldest torch promised, unpacked from its wheel
    # (pip download --no-deps torch==2.11.0)
    old = os.environ.get("AXNET_OLD_TORCH_INCLUDE")
    if not old:
        pytest.skip("AXNET_OLD_TORCH_INCLUDE names no headers of torch 2.11")
    version = (Path(old) / "torch" / "headeronly" / "version.h").read_text(encoding="utf-8")
    assert "VERSION_MAJOR 2" in version
    assert "VERSION_MINOR 11" in version
    common = ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'csrc'}"]
    common += ["-isystem", old, "-isystem", f"{old}/torch/csrc/api/include"]
    common += ["-isystem", sysconfig.get_paths()["include"]]
    csrc = ROOT / "csrc"
    plain = [["g++", "-fsyntax-only", str(f)] for f in (csrc / "ops.cpp", *sorted((csrc / "cpu").glob("*.cpp")))]
    host = ["g++", "-fsyntax-only", "-x", "c++", "-Wno-unknown-pragmas", f"-I{ROOT / 'tests' / 'cuda_host'}"]
    kernels, wrappers = sorted((csrc / "cuda").glob("*.cu")), sorted((csrc / "cuda").glob("*.cpp"))
    jobs = plain + [[*host, str(f)] for f in (*kernels, *wrappers) if f.name != "launch.cpp"]
    if shutil.which("nvcc"):  # the real launch.h and queue.h; one architecture's front end is enough
        jobs += [["nvcc", "-cuda", "-arch=sm_90", "-DUSE_CUDA", "--expt-relaxed-constexpr", str(f)] for f in kernels]
        jobs += [["nvcc", "-c", "-Xcompiler", "-fsyntax-only", "-DUSE_CUDA", str(f)] for f in wrappers]

    def compile_one(job: list[str]) -> str:
        out = ["-o", os.devnull] if job[0] == "nvcc" else []
        done = subprocess.run([*job, *common, *out], capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else " ".join(job) + "\n" + done.stderr[-3000:]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert [text for text in pool.map(compile_one, jobs) if text] == []


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++-11", "clang++"])
def test_cpu_sources_compile_with_the_compilers_that_the_docs_name(compiler):
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    includes = [ROOT / "csrc", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags = ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Werror=attributes"]
    for source in (ROOT / "csrc" / "ops.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))):
        # all the way to machine code: there an instruction set that is not switched on is found
        command = [compiler, "-c", "-O0", *flags, *(f"-I{i}" for i in includes), str(source), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
