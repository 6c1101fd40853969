"""PEP 517 backend of axnet: setuptools, plus torch as a build requirement only where none is installed.

Under build isolation pip runs the build in an empty environment. If the environment that will receive axnet already
has torch, compiling against another one breaks at import; so that environment's site-packages are made visible to the
build, and torch is asked for only when there is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

_PROBE = "import importlib.util as u, os; s = u.find_spec('torch'); print(os.path.dirname(os.path.dirname(s.origin)))"
_REQUIREMENT = "torch>=2.11"


def _candidates() -> list[str]:
    """Interpreters that may own the environment that axnet is being installed into, likeliest first."""
    named = os.environ.get("AXNET_PYTHON")
    # pip's isolated build runs the target environment's own interpreter; build and uv run a new one of their own.
    found = [named] if named else [sys.executable]
    prefix = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    if prefix and not named:
        found.append(str(Path(prefix) / "bin" / "python"))
    return found


def target_torch() -> str | None:
    """Folder that holds the target environment's torch, or None where it has none."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    for python in _candidates():
        version = "import sys; print(sys.version_info[:2])"
        try:
            same = subprocess.run([python, "-c", version], capture_output=True, text=True, env=environment, timeout=60)
            if same.stdout.strip() != str(sys.version_info[:2]):
                continue
            probe = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, env=environment, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if probe.returncode == 0 and probe.stdout.strip():
            return probe.stdout.strip()
    return None


def _expose(folder: str | None) -> None:
    if folder and folder not in sys.path:
        # Last on the path: the build's own setuptools, pybind11 and ninja win, torch and its needs are found.
        sys.path.append(folder)
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([inherited, folder] if inherited else [folder])


def _requirements() -> list[str]:
    return [] if target_torch() else [_REQUIREMENT]


def get_requires_for_build_wheel(config_settings=None):
    """Ask for torch only where the target environment has none."""
    return _requirements()


def get_requires_for_build_editable(config_settings=None):
    """Ask for torch only where the target environment has none."""
    return _requirements()


def get_requires_for_build_sdist(config_settings=None):
    """A source archive needs no torch."""
    return []


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the wheel against the target environment's torch."""
    _expose(target_torch())
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Build in place against the target environment's torch."""
    _expose(target_torch())
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
