from __future__ import annotations

import os
from pathlib import Path

import pytest

from axnet.data import write_nih


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom set on disk in NIH's format, with organs/; shared and read-only."""
    return write_nih(tmp_path_factory.mktemp("phantom") / "nih", 60, seed=3, size=128, test_fraction=0.25)


@pytest.fixture
def nih_root(tmp_path: Path) -> Path:
    """A small phantom set that a test may damage."""
    return write_nih(tmp_path / "nih", 16, seed=5, size=64, test_fraction=0.3)


def real_data(name: str) -> Path:
    """Folder of a real data set: AXNET_DATA, else ../shared/data beside the repository; skips where absent."""
    base = Path(os.environ.get("AXNET_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (base / name).is_dir():
        pytest.skip(f"real data set '{name}' is absent (set AXNET_DATA to its parent folder)")
    return base / name


@pytest.fixture
def nih_subset() -> Path:
    return real_data("nih_subset")


@pytest.fixture
def wingspan() -> Path:
    return real_data("wingspan_ctr")
