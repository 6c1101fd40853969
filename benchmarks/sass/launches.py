"""Machine code of csrc/cuda from nvcc, and the launches that the ops' host code makes, recorded by its host build."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

from benchmarks.sass.host import writable_memory
from benchmarks.sass.machine import Launch
from benchmarks.sass.program import disassemble, kernel_of

KEEP = "-Daoti_torch_empty_strided=axnet_host_empty_strided"
ROOT = Path(__file__).resolve().parents[2]


def find_nvdisasm() -> str | None:
    from importlib.util import find_spec

    found = shutil.which("nvdisasm")
    spec = find_spec("triton")
    if found is None and spec is not None and spec.origin:
        found = shutil.which("nvdisasm", path=str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    return found


def flags(source: Path) -> list[str]:
    includes = [f"-I{source / 'csrc'}"]
    for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"]):
        includes += ["-isystem", path]
    return ["-std=c++20", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", *includes]


def cache_of(source: Path, word: str, *files: Path) -> Path:
    """A place for what follows from these files."""
    digest = hashlib.sha256(word.encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = ROOT / "build" / "cuda_model"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / digest.hexdigest()[:20]


def headers(*folders: Path) -> list[Path]:
    return sorted(p for f in folders for e in ("*.h", "*.cuh") for p in f.rglob(e))


def machine_code(source: Path, file: Path, nvcc: str, nvdisasm: str) -> dict[str, str]:
    """The listing of each kernel of a file, with the registers in its first line."""
    kept = cache_of(source, "sass 3", file, *headers(source / "csrc")).with_suffix(".json")
    if not kept.exists():
        cubin = kept.with_suffix(".cubin")
        command = [nvcc, "-cubin", str(file), "-o", str(cubin), "-O3", "--expt-relaxed-constexpr", "-arch=sm_90"]
        done = subprocess.run([*command, "-Xptxas", "-v", *flags(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{file.name} does not compile for sm_90:\n{done.stderr[-6000:]}")
        used = {}
        for entry in done.stderr.split("Compiling entry function '")[1:]:
            registers, shared = re.search(r"Used (\d+) registers", entry), re.search(r"(\d+) bytes smem", entry)
            used[entry.split("'")[0]] = [int(registers[1]) if registers else 0, int(shared[1]) if shared else 0]
        listings = disassemble(nvdisasm, cubin)
        kept.write_text(json.dumps({k: [used[v.partition("\n")[0]], v] for k, v in listings.items()}))
        cubin.unlink()
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def host_library(source: Path, files: list[Path]) -> Path:
    """The ops with the kernels' host code, which records launches (tests/cuda_host)."""
    host = source / "tests" / "cuda_host"
    shared = headers(source / "csrc", host)
    objects = []

    def compile_one(file: Path) -> Path:
        out = cache_of(source, "host 4", file, *shared).with_suffix(".o")
        if not out.exists():
            command = ["g++", "-x", "c++", "-O0", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas", f"-I{host}"]
            done = subprocess.run(
                [*command, *flags(source), "-UUSE_CUDA", KEEP, "-c", str(file), "-o", str(out)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(f"{file.name} does not compile for the host:\n{done.stderr[-6000:]}")
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [host / "fibers.cpp", source / "csrc" / "ops.cpp", *files]))
    library = cache_of(source, "library", *objects).with_suffix(".so")
    if not library.exists():
        folders = [f for path in cpp_extension.library_paths() for f in (f"-L{path}", f"-Wl,-rpath,{path}")]
        command = ["g++", "-shared", *map(str, objects), *folders, "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
        subprocess.run([*command, "-o", str(library)], check=True)
    return library


class Recorder:
    """The launches that calls of the ops make."""

    def __init__(self, library: Path) -> None:
        import importlib.util

        self.release = ctypes.CDLL(str(library)).axnet_host_release
        self.file = ROOT / "build" / "cuda_model" / f"launches.{os.getpid()}"
        os.environ["AXNET_RECORD_LAUNCHES"] = str(self.file)
        os.environ["AXNET_CUDA_HOST_SHARED_KB"] = "227"  # of a block on sm_90
        spec = importlib.util.spec_from_file_location("axnet._C", library)
        assert spec is not None and spec.loader is not None  # noqa: PT018
        module = importlib.util.module_from_spec(spec)
        sys.modules["axnet._C"] = module
        sys.modules.setdefault("axnet._buildinfo", types.SimpleNamespace(cuda_kernels="no (the judge)"))  # type: ignore[arg-type]
        spec.loader.exec_module(module)
        table = subprocess.run(["nm", "-C", str(library)], capture_output=True, text=True, check=True).stdout
        self.names = {}
        for line in table.splitlines():
            address, _, rest = line.partition(" ")
            name = kernel_of(rest)
            if name and address:
                self.names[int(address, 16)] = name

    def __call__(self, call: Any) -> list[Launch]:
        self.release()
        self.file.write_text("")
        self.kept = call()  # its tensors stay alive while the launches are executed
        launches = []
        for line in self.file.read_text().splitlines():
            offset, blocks, groups, threads, shared, *data = line.split()
            launches.append(
                Launch(
                    self.names[int(offset)],
                    (int(blocks), int(groups)),
                    int(threads),
                    int(shared),
                    bytes.fromhex(data[0] if data else ""),
                )
            )
        self.file.unlink()
        return launches


def buffers_of(launch: Launch) -> list[tuple[int, int]]:
    """Address and bytes of the tensors that the arguments point to.

    An argument's eight bytes may look like an address and be none (padding keeps what stood there): asked is only the
    allocator's own note before a block, glibc's size with its two flags, and only where it lies within its mapping.
    """
    usable = ctypes.CDLL(None).malloc_usable_size
    usable.restype, usable.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    regions = writable_memory()
    found = {}
    for at in range(0, len(launch.arguments) // 8 * 8, 8):
        (address,) = struct.unpack_from("<Q", launch.arguments, at)
        high = next((high for low, high in regions if low + 16 <= address < high), None)
        if address % 16 or high is None:
            continue
        (note,) = struct.unpack("<Q", ctypes.string_at(address - 8, 8))
        size, mapped = note & ~7, bool(note & 2)
        if size >= 32 and size % 16 == 0 and address + size <= high + (16 if mapped else 0):
            found[address] = min(usable(address), high - address)
    return sorted(found.items())
