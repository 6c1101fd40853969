from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import workers
from torch import Tensor


@pytest.fixture(scope="session")
def rows() -> tuple[Tensor, Tensor]:
    """Scores and labels [23, 4] with unknown ones; the first 11 have no positive of one finding."""
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(23, 4, generator=generator), torch.randint(0, 2, (23, 4), generator=generator).float()
    labels[::5, 1] = float("nan")
    labels[:11, 2] = 0
    return scores, labels


@pytest.fixture(scope="session")
def computed(rows: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes computed."""
    return workers.together(workers.computed, tmp_path_factory.mktemp("two"), ["mean", "concat"], *rows)
