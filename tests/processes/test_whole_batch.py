"""A step of two processes on AnatomyXNet with synchronised batch normalisation is that of one with the whole batch."""

from __future__ import annotations

import pytest
import torch
from opcases import assert_close
from processes import workers
from torch.distributed.tensor import Shard

from axnet.train.sharding import _axis


@pytest.mark.parametrize("kept", ["", ", shared"], ids=["copies", "shares"])
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_a_step_is_that_of_the_whole_batch(computed, fusion, kept):
    expected = workers.step(workers.network(fusion), *workers.batch())
    for found in computed:
        assert set(found[fusion + kept]) == set(expected)
        for name, value in expected.items():
            assert_close(name, found[fusion + kept][name], value, 1e-9)


@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_shares_are_saved_as_the_whole(computed, fusion):
    model = workers.network(fusion)
    parameters, count = dict(model.named_parameters()), sum(parameter.numel() for parameter in model.parameters())
    shares = [found[f"{fusion}, share"] for found in computed]
    assert sum(shares) == count
    assert max(shares) < 0.6 * count
    for found in computed:
        assert list(found[f"{fusion}, state"]) == list(model.state_dict())
        for name, value in parameters.items():
            assert torch.equal(found[f"{fusion}, state"][name], value), name


@pytest.mark.parametrize(("shape", "axis"), [((2, 64, 64), 1), ((64, 2), 0), ((3, 5), 0), ((3,), 0)])
def test_shares_are_equal_where_an_axis_allows_it(shape, axis):
    assert _axis(8, torch.nn.Parameter(torch.empty(shape))) == Shard(axis)
