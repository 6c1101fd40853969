"""Versions, backends and build metadata: what `axnet info` prints and what records carry."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from typing import Any

import torch

from axnet import __version__, backends, ops


def _build() -> dict[str, str]:
    try:
        built = importlib.import_module("axnet._buildinfo")
    except ImportError:
        return {"compiled code": "none: axnet runs from source; install it with 'pip install .'"}
    fields = {
        "compiler": "compiler",
        "flags": "flags",
        "built for torch": "torch_version",
        "instruction sets": "instruction_sets",
        "CUDA kernels": "cuda_kernels",
        "CUDA version": "cuda_version",
        "CUDA architectures": "cuda_architectures",
    }
    return {title: str(getattr(built, name)) for title, name in fields.items() if getattr(built, name)}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def info() -> dict[str, dict[str, Any]]:
    """What axnet runs on: groups "versions", "backends", "build" and "device", each a mapping of names to values.

    "backends" maps every backend to "available" or to the reason why it is not, for CPU tensors and, where torch has
    CUDA, for CUDA tensors.
    """
    versions = {"axnet": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "monai", "lightning", "safetensors", "scikit-learn"):
        found = _version_of(package)
        versions[package] = found if found is not None else "not installed"
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    state = {
        f"{name} ({device})": backends.why_not(name, device) or "available"
        for device in devices
        for name in backends.BACKENDS
    }
    device: dict[str, Any] = {
        "CPU": _cpu_name(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
    }
    if ops.unavailable() is None:
        device["instruction set in use"] = torch.ops.axnet.cpu_instruction_set()
    if torch.cuda.is_available():
        device["GPU"] = torch.cuda.get_device_name()
    return {"versions": versions, "backends": state, "build": _build(), "device": device}
