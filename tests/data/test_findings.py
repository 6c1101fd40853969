from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import axnet.data
from axnet.data import ANATOMIES, NIH_FINDINGS, ORGANS, organs_to_anatomies


def test_vocabulary() -> None:
    assert len(NIH_FINDINGS) == len(set(NIH_FINDINGS)) == 14
    assert NIH_FINDINGS[0] == "Atelectasis"
    assert NIH_FINDINGS[-1] == "Hernia"
    assert ORGANS == ("left_lung", "right_lung", "heart")
    assert ANATOMIES == ("lungs", "heart")


@pytest.mark.parametrize("lead", [(), (2,), (2, 5)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_organs_to_anatomies_numpy_and_torch_agree(lead: tuple[int, ...], dtype: type) -> None:
    masks = (np.random.default_rng(0).random((*lead, 3, 4, 6)) < 0.4).astype(dtype)
    merged = organs_to_anatomies(masks)
    assert merged.shape == (*lead, 2, 4, 6)
    assert merged.dtype == masks.dtype
    assert (merged[..., 0, :, :] == (masks[..., 0, :, :].astype(bool) | masks[..., 1, :, :].astype(bool))).all()
    assert (merged[..., 1, :, :] == masks[..., 2, :, :]).all()
    from_torch = organs_to_anatomies(torch.from_numpy(masks))
    assert from_torch.dtype == torch.from_numpy(masks).dtype
    assert np.array_equal(from_torch.numpy(), merged)


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (3, 2, 4, 4)])
def test_organs_to_anatomies_rejects_other_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"masks has shape .* expected \[\.\.\., 3, H, W\]"):
        organs_to_anatomies(np.zeros(shape))


def test_every_public_name_resolves() -> None:
    for name in axnet.data.__all__:
        assert getattr(axnet.data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        axnet.data.nonsense  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, axnet.data; sys.exit('pandas' in sys.modules or 'axnet.data.nih' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
