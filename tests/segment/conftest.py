from __future__ import annotations

import pytest

from axnet.data import PhantomXray
from axnet.segment import Segmenter, SegmenterConfig, fit_segmenter


@pytest.fixture(scope="session")
def config() -> SegmenterConfig:
    """The smallest network that still learns the phantom."""
    return SegmenterConfig(size=64, channels=(8, 16, 32, 32))


@pytest.fixture(scope="session")
def segmenter(config: SegmenterConfig) -> Segmenter:
    """A segmenter trained for some seconds: enough to find every organ."""
    data = PhantomXray(150, size=64, split="train").materialize()
    return fit_segmenter(data, config=config, epochs=14, lr=1e-2, progress=False)
