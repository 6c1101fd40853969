"""A step of two processes on AnatomyXNet with synchronised batch normalisation is that of one with the whole batch."""

from __future__ import annotations

import pytest
from opcases import assert_close
from processes import workers


@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_a_step_is_that_of_the_whole_batch(computed, fusion):
    expected = workers.step(workers.network(fusion), *workers.batch())
    for found in computed:
        assert set(found[fusion]) == set(expected)
        for name, value in expected.items():
            assert_close(name, found[fusion][name], value, 1e-9)
