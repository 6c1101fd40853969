"""The CUDA kernels without a GPU: g++ compiles the same sources, tests/cuda_host runs their blocks as fibers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nested import MATRIX, ROOT, poisoned_memory, run_pytest
from torch.utils import cpp_extension

pytestmark = pytest.mark.slow
HOST = ROOT / "tests" / "cuda_host"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
needs_gcc = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="g++ on Linux compiles the kernels for the host"
)


def build(out: Path, *flags: str) -> Path:
    """The op library with the CUDA kernels in the place of the CPU's."""
    includes = [f"-I{HOST}", f"-I{ROOT / 'csrc'}"]
    for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"]):
        includes += ["-isystem", path]
    common = ["-x", "c++", "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
    common += ["-DTORCH_TARGET_VERSION=0x020b000000000000", *includes, *flags]
    cuda = sorted(f for f in (ROOT / "csrc" / "cuda").glob("*.c*") if f.suffix != ".cuh" and f.name != "launch.cpp")
    sources = [HOST / "fibers.cpp", ROOT / "csrc" / "ops.cpp", *cuda]
    objects = [str(out / f"{source.stem}.o") for source in sources]

    def compile_one(source: Path, target: str) -> None:
        done = subprocess.run(
            ["g++", *common, "-c", str(source), "-o", target], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-8000:]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    library = out / "_C.so"
    folders = [f for path in cpp_extension.library_paths() for f in (f"-L{path}", f"-Wl,-rpath,{path}")]
    done = subprocess.run(
        ["g++", "-shared", *flags, *objects, *folders, "-ltorch", "-ltorch_cpu", "-lc10", "-o", str(library)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return library


def run_matrix(library: Path, every: int, *arguments: str, **environment: str) -> int:
    """Number of cases of the op matrix that passed; every: one case in so many of each test runs."""
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HOST), os.environ.get("PYTHONPATH")))),
        "AXNET_CUDA_HOST": str(library),
        "AXNET_TEST_BACKENDS": "native",
        "AXNET_TEST_EVERY": str(every),
    }
    return run_pytest("-p", "cuda_host_plugin", *arguments, **variables, **environment)


@needs_gcc
def test_matrix(tmp_path):
    assert run_matrix(build(tmp_path), 5, *MATRIX, **poisoned_memory(tmp_path)) >= 140


@needs_gcc
def test_pooling_in_the_shared_memory_of_a_large_gpu(tmp_path):
    # there tiles are copied ahead and 16 maps go together, in less only up to 1024 channels; by default the host has
    # that of a small one
    file = next(file for file in MATRIX if file.endswith("test_pooling.py"))
    library = build(tmp_path)
    assert run_matrix(library, 9, file, AXNET_CUDA_HOST_SHARED_KB="227") >= 50
    for kilobytes in ("163", "227"):
        many = ("-k", "many_maps_of_many_channels")
        assert run_matrix(library, 1, file, *many, AXNET_CUDA_HOST_SHARED_KB=kilobytes) >= 6


@needs_gcc
def test_matrix_under_sanitizers(tmp_path):
    # one wrong index or shift ends the process; gradcheck calls the same kernels hundreds of times
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    if not all(Path(runtime).is_file() for runtime in runtimes):
        pytest.skip("the compiler has no runtime of its address and undefined-behaviour sanitizers")
    files = [file for file in MATRIX if file.endswith(("test_attention.py", "test_maxima.py", "test_pooling.py"))]
    passed = run_matrix(
        build(tmp_path, *SANITIZERS),
        37,
        *files,
        "-k",
        "not gradcheck and not bits",
        LD_PRELOAD=" ".join(runtimes),
        # Python's leaks; stacks of fibers; memory is NaN until it is written
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0:malloc_fill_byte=255:max_malloc_fill_size=1000000",
    )
    assert passed >= 30


@needs_gcc
def test_the_sanitized_build_sees_a_wrong_index(tmp_path):
    # the proof that the test above can fail: a kernel that reads beyond its shared memory
    program = tmp_path / "beyond.cpp"
    program.write_text(
        '#include "cuda/launch.h"\n'
        "void kernel(int limit) {\n"
        "  AXNET_SHARED(shared);\n"
        "  shared[threadIdx.x] = 1;\n"
        "  __syncthreads();\n"
        "  volatile unsigned char seen = shared[limit];\n"
        "  (void)seen;\n"
        "}\n"
        "int main() { axnet::cuda::launch(kernel, 1, 1, 32, 32, nullptr, 32); }\n"
    )
    done = subprocess.run(
        [
            *("g++", "-std=c++20", "-O1", "-DTORCH_TARGET_VERSION=0x020b000000000000", *SANITIZERS),
            *(
                f"-I{HOST}",
                f"-I{ROOT / 'csrc'}",
                str(program),
                str(HOST / "fibers.cpp"),
                "-o",
                str(tmp_path / "beyond"),
            ),
            *(word for path in cpp_extension.include_paths() for word in ("-isystem", path)),
            *(f for path in cpp_extension.library_paths() for f in (f"-L{path}", f"-Wl,-rpath,{path}")),
            *("-ltorch", "-ltorch_cpu", "-lc10"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    run = subprocess.run([str(tmp_path / "beyond")], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr
