"""`auto` on a GPU: the table that a record gives, and what it is asked with."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from axnet import _choice, backends
from axnet.ops import library

ROOT = Path(__file__).resolve().parents[2]
BIG, SMALL = (64, 1024, 48, 48), (1, 1024, 16, 16)


@pytest.fixture(scope="module")
def choose_backend() -> ModuleType:
    path = ROOT / "benchmarks" / "choose_backend.py"
    spec = importlib.util.spec_from_file_location("choose_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def both_serve(monkeypatch):
    """A machine where both backends serve a GPU, and a table that names Triton for one case."""
    monkeypatch.delenv("AXNET_BACKEND", raising=False)
    monkeypatch.setattr(library, "_REASON", None)
    monkeypatch.setattr(library, "_CUDA_REASON", None)
    monkeypatch.setattr(library, "_TRITON_FOUND", True)
    table = {("attention", "NCHW", "bfloat16"): ("triton", 10**6), ("attention", "NCHW", "float32"): ("native", 0)}
    monkeypatch.setattr(_choice, "FASTER", table)


def on_gpu(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "NCHW") -> torch.Tensor:
    """Metadata of a tensor on a GPU that is not there."""
    with FakeTensorMode():
        form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="cuda", memory_format=form)


def test_auto_takes_what_the_table_names(both_serve, monkeypatch):
    big = on_gpu(BIG, torch.bfloat16)
    assert backends.resolve(None, big, "attention") == "triton"
    assert backends.resolve("auto", big, "attention") == "triton"
    assert backends.resolve(None, on_gpu(BIG, torch.float16), "attention") == "triton"  # as large as bfloat16
    assert backends.resolve(None, on_gpu(BIG, torch.float32), "attention") == "native"
    assert backends.resolve(None, on_gpu(BIG, torch.float64), "attention") == "native"  # no row
    assert backends.resolve(None, on_gpu(BIG, torch.bfloat16, "channels_last"), "attention") == "native"
    assert backends.resolve(None, big, "pwap, few maps") == "native"
    assert backends.resolve(None, big) == "native"
    # Python's time decides at a small map
    assert backends.resolve(None, on_gpu(SMALL, torch.bfloat16), "attention") == "native"
    # a name goes before the table; a backend that is not there is not taken
    assert backends.resolve("native", big, "attention") == "native"
    monkeypatch.setattr(library, "_TRITON_FOUND", False)
    assert backends.resolve(None, big, "attention") == "native"
    monkeypatch.setattr(library, "_TRITON_FOUND", True)
    monkeypatch.setattr(library, "_CUDA_REASON", "axnet was built without CUDA kernels")
    assert backends.resolve(None, big, "pwap, few maps") == "triton"


def test_the_table_is_not_asked_on_a_cpu(both_serve):
    assert backends.resolve(None, torch.empty(2, 2, 512, 512, dtype=torch.bfloat16), "attention") == "native"


def test_compiled_models_see_through_the_choice(both_serve):
    def chosen(x: torch.Tensor) -> torch.Tensor:
        return x + (1 if backends._first(x, "attention") == "triton" else 0)

    compiled = torch.compile(chosen, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16)).max() == 1  # without Python's time, at any size
    assert compiled(torch.zeros(1, 2, 3, 3)).max() == 0


def test_kinds_of_work(choose_backend):
    assert set(choose_backend.WORK) >= {case[0] for case in _choice.FASTER}
    assert {backends.pooling_work(maps, training) for maps in (1, 4, 5, 14) for training in (False, True)} == {
        name for name in choose_backend.WORK if name.startswith("pwap")
    }


def test_the_table_is_what_its_record_gives(choose_backend):
    def row(name: str, backend: str, median: float) -> dict[str, object]:
        return {"pass": name, "backend": backend, "layout": "NCHW", "dtype": "torch.float32", "median": median}

    first = [row("descriptors", "native", 2.0), row("descriptors", "triton", 1.0), row("gate + norm", "native", 1.0)]
    first += [row("gate + norm", "triton", 3.0)]
    times = choose_backend.times_of([{"passes": first}])
    found = {work: choice[0] for (work, _, _), choice in choose_backend.choose(times).items()}
    assert found == {"descriptors": "triton", "attention": "native"}  # the sum of both passes: 3 against 4
    # later records go before earlier ones, and the gain says from which size on it counts
    later = choose_backend.times_of([{"passes": first}, {"passes": [row("gate + norm", "triton", 1.5)]}])
    name, least, totals = choose_backend.choose(later)["attention", "NCHW", "float32"]
    assert name == "triton"
    assert totals == {"native": 3.0, "triton": 2.5}
    assert least == pytest.approx(2 * choose_backend.HOST / 0.5 * choose_backend.ELEMENTS, rel=0.01)
    text = choose_backend.table([{"device": "a card", "commit": "abc", "predicted": True, "passes": first}])
    assert "native and triton predicted: a card; commit abc." in text
    space: dict[str, object] = {}
    exec(text, space)
    assert space["FASTER"]["descriptors", "NCHW", "float32"][0] == "triton"


def test_kernels_of_the_judge_are_a_predicted_record(choose_backend, tmp_path):
    kernels = [
        {"name": "gate + norm", "layout": "NCHW", "dtype": "bfloat16", "predicted_ms": 0.25},
        {"name": "gate + norm", "layout": "NCHW", "dtype": "bfloat16", "predicted_ms": 0.5},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(kernels), encoding="utf-8")
    record = choose_backend.read(tmp_path / "rows.json")
    assert record["predicted"]
    assert choose_backend.times_of([record]) == {("gate + norm", "NCHW", "bfloat16"): {"native": 0.75}}
