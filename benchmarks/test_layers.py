"""pytest-benchmark suites of A3 and PWAP: every form is compared with eager before it is timed.

pytest benchmarks --benchmark-group-by=group [--benchmark-json=record.json] [-k "axnet or eager"]
"""

from __future__ import annotations

import pytest

from axnet.bench import FORMS, LAYOUTS, SHAPES, TASKS, Case, forms_of
from axnet.bench.cases import MODES
from axnet.bench.measure import check


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", TASKS)
def test_layer(benchmark, task, mode, layout, shape, form):
    case = Case(task, mode, shape, layout)
    calls = forms_of(case, tuple(dict.fromkeys((form, "eager"))))
    check(case, calls)
    benchmark.group = f"{task} {mode} {'x'.join(map(str, shape))} {layout}"
    benchmark.extra_info["floor_bytes"] = case.floor_bytes
    benchmark(calls[form])
