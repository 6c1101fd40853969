"""Build of axnet's compiled parts; everything declarative stands in pyproject.toml."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

from toolkit import Toolkit, find  # noqa: E402

CPU_SOURCES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("*.cpp") if p.name != "buildinfo.cpp")
CPU_SOURCES += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "cpu").glob("*.cpp"))
CUDA_SOURCES = sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "cuda").iterdir() if p.suffix in (".cpp", ".cu")
)
# The names of files that take long begin so. They are compiled first, lest one of them is left alone at the end.
LONG = ("isa_", "pwap")
# The oldest torch whose stable ABI the sources use: what is built here runs on every later one.
ABI_TARGET = "0x020b000000000000"
# Code for 8.0 runs on every 8.x, PTX on what comes after 9.0.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
# What torch 2.13 and later ask for; torch 2.11 and 2.12 would choose C++17.
STANDARD = "-std=c++20"


def decide_cuda(torch) -> tuple[Toolkit | None, str]:
    """The toolkit that CUDA kernels are built with, or None, and the reason."""
    wish = os.environ.get("AXNET_CUDA")
    if wish not in (None, "", "0", "1"):
        raise SystemExit(f"AXNET_CUDA: got {wish!r}, accepted are 0 (no CUDA kernels) and 1 (require them).")
    if wish == "0":
        return None, "AXNET_CUDA=0"
    if torch.version.cuda is None:
        toolkit, reason = Toolkit(), "this torch is a build without CUDA"
    else:
        keep = ROOT / "build" / "cudart"
        toolkit = find(Path(torch.__file__).parent, torch.version.cuda, keep, cxx().split(), [STANDARD])
        reason = toolkit.problem
    if not reason:
        return toolkit, f"CUDA {toolkit.version} in {toolkit.home}"
    if wish == "1":
        raise SystemExit(f"AXNET_CUDA=1 asks for CUDA kernels, but they cannot be built here: {reason}.")
    return None, plain(reason)


def plain(text: str) -> str:
    """What may stand in a macro's string, whatever a compiler has said."""
    return re.sub(r"[^\w .,:;()/+=-]", "", text)


def cxx() -> str:
    return os.environ.get("CXX", "c++")


def compiler_version() -> str:
    command = cxx()
    try:
        out = subprocess.run([*command.split(), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            f"No working C++ compiler: tried {command!r}; install g++ (Debian: apt install g++) or set CXX."
        ) from None
    return out.stdout.splitlines()[0]


def as_one_word(name: str) -> None:
    """Make a compiler command of several words ("ccache gcc") a script: torch takes the first for the whole of it."""
    command = os.environ.get(name, "")
    if " " not in command:
        return
    script = ROOT / "build" / name.lower()
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    os.environ[name] = str(script)


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    print("axnet build configuration", file=sys.stderr)
    for key, value in rows.items():
        print(f"  {key:<{width}}  {value}", file=sys.stderr)


def native_extensions():
    """Extensions, commands and options for setup()."""
    try:
        import torch
        from torch.torch_version import TorchVersion
        from torch.utils import cpp_extension
    except ModuleNotFoundError:
        raise SystemExit(
            "axnet compiles against torch and found none; use pip with build isolation (the default), or install torch "
            "first when you pass --no-build-isolation."
        ) from None
    import pybind11

    toolkit, reason = decide_cuda(torch)
    with_cuda = toolkit is not None
    standard = [STANDARD] if TorchVersion(torch.__version__) < "2.13" else []
    nvcc_flags = ["-O3", *standard, "--expt-relaxed-constexpr"]
    folders = []
    if toolkit is not None:
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = toolkit.home
        os.environ["PYTORCH_NVCC"] = toolkit.nvcc
        folders = toolkit.libraries
    if " " in cxx():  # "ccache g++"
        nvcc_flags += ["-ccbin", cxx().split()[-1]]
        os.environ["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"
    for name in ("CC", "CXX"):
        as_one_word(name)
    os.environ.setdefault("NINJA_STATUS", "axnet: file %f of %t, %e s ")
    os.environ.setdefault("MAX_JOBS", str(processors()))  # ninja starts one or two more: that takes longer
    if with_cuda and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        present = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        names = [f"{major}.{minor}" for major, minor in sorted(present)]
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(names) or DEFAULT_ARCHITECTURES
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else ""

    # Python's own flags ask for debug information: a quarter of the build's time and 27 of the library's 32 MB.
    flags = ["-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    flags += ["-Wall", "-Wextra", "-Wno-unused-parameter"]
    if sys.platform == "linux":
        flags += ["-Wno-psabi"]
    flags += standard
    defines = [("TORCH_TARGET_VERSION", ABI_TARGET), *([("USE_CUDA", None)] if with_cuda else [])]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    rows = {
        "torch": torch.__version__,
        "stable ABI target": "torch 2.11",
        "compiler": compiler_version(),
        "flags": " ".join(flags),
        "instruction sets": "avx512, avx2, baseline (chosen at run time)" if x86 else "baseline",
        "CUDA kernels": f"{'yes' if with_cuda else 'no'} ({reason})",
        "CUDA version": str(torch.version.cuda) if with_cuda else "",
        "CUDA architectures": architectures,
    }
    print_table(rows)

    make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    sources = CPU_SOURCES + (CUDA_SOURCES if with_cuda else [])
    # setuptools sorts the paths, and a dot comes before letters
    sources = [f"./{source}" if Path(source).name.startswith(LONG) else source for source in sources]
    compile_args = {"cxx": flags, "nvcc": nvcc_flags}
    library = make(
        "axnet._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=folders,
        define_macros=defines,
        extra_compile_args=compile_args,
        py_limited_api=True,
    )
    facts = {
        "torch_version": torch.__version__,
        "flags": rows["flags"],
        "instruction_sets": rows["instruction sets"],
        "cuda_kernels": rows["CUDA kernels"],
        "cuda_version": rows["CUDA version"],
        "cuda_architectures": architectures,
    }
    build = cpp_extension.BuildExtension
    if os.environ.get("AXNET_ABI3", "0") not in ("", "0"):
        # pybind11 has no stable ABI, and its module would tie the wheel to one Python: the same facts as a Python file
        options = {"bdist_wheel": {"py_limited_api": "cp310"}}
        return [library], {"build_ext": with_facts(build, {"compiler": rows["compiler"], **facts})}, options
    buildinfo = Extension(
        "axnet._buildinfo",
        ["csrc/buildinfo.cpp"],
        include_dirs=[pybind11.get_include()],
        language="c++",
        extra_compile_args=["-O0", "-g0", "-std=c++17", "-fvisibility=hidden"],
        define_macros=[(f"AXNET_{name.upper()}", f'"{value}"') for name, value in facts.items()],
    )
    return [library, buildinfo], {"build_ext": build}, {}


def with_facts(command, facts: dict[str, str]):
    """The build command, which also writes axnet/_buildinfo.py beside the library."""

    class Build(command):
        def run(self) -> None:
            super().run()
            folder = ROOT / "axnet" if self.inplace else Path(self.build_lib) / "axnet"
            lines = ['"""What axnet\'s compiled code was built from."""', ""]
            lines += [f"{name} = {value!r}" for name, value in facts.items()]
            (folder / "_buildinfo.py").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return Build


def metadata_only() -> bool:
    """Commands that read names and versions must not need torch."""
    return any(word in sys.argv for word in ("egg_info", "dist_info", "sdist", "--version", "--name"))


extensions, commands, options = ([], {}, {}) if metadata_only() else native_extensions()
setup(
    packages=[
        *(".".join(p.parent.relative_to(ROOT).parts) for p in sorted((ROOT / "axnet").rglob("__init__.py"))),
        "axnet.kernels",
    ],
    package_dir={"axnet": "axnet", "axnet.kernels": "kernels"},
    package_data={
        "axnet": ["py.typed", "models/weights/*", "report/templates/*", "segment/weights/*", "serve/page/*"],
    },
    ext_modules=extensions,
    cmdclass=commands,
    options=options,
)
