from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from axnet.cli.segment import app
from axnet.data import MaskTable, OrganMaskSet
from axnet.segment import load_pretrained
from axnet.segment.pretrained import WEIGHTS

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WINGSPAN = Path(os.environ.get("AXNET_DATA", SHARED)) / "wingspan_ctr"
INVERTED = "the grey values are inverted"


@pytest.fixture(scope="module")
def pretrained():
    return load_pretrained()


@pytest.fixture(scope="module")
def films():
    if not WINGSPAN.is_dir():
        pytest.skip("set AXNET_DATA to the folder that holds wingspan_ctr")
    return OrganMaskSet(WINGSPAN, "test")


def test_weights_are_small_and_described():
    assert WEIGHTS.stat().st_size <= 4_000_000
    card = WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    for word in ("Data", "Licence", "Figures", "Limits", "medical device"):
        assert word in card


def test_organs_of_real_films(pretrained, films):
    found = pretrained.predict([films[i]["image"][0].numpy() for i in range(8)])
    for index, anatomy in enumerate(found):
        for mask, true in zip(anatomy.masks, films[index]["mask"].numpy() > 0.5, strict=True):
            assert 2 * (mask & true).sum() / (mask.sum() + true.sum()) > 0.85
    assert sum(not anatomy.flags for anatomy in found) >= 7


def test_a_negative_is_noticed(pretrained, films):
    images = [films[i]["image"][0].numpy() for i in range(8)]
    assert not any(INVERTED in anatomy.flags for anatomy in pretrained.predict(images))
    assert sum(INVERTED in anatomy.flags for anatomy in pretrained.predict([1 - image for image in images])) >= 7


def test_what_is_no_chest_is_flagged_and_gets_the_atlas(pretrained):
    noise = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert all(anatomy.flags for anatomy in pretrained.predict([image[0].numpy() for image in noise]))
    masks = pretrained.plausible_batch(noise)
    torch.testing.assert_close(masks[0], masks[1])
    atlas = pretrained.atlas
    assert 0.3 < atlas.max() <= 1
    columns = torch.linspace(-1, 1, atlas.shape[-1])
    left, right, heart = ((plane.sum(0) * columns).sum() / plane.sum() for plane in atlas)
    assert right < heart < left


def test_the_command_needs_no_weights(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((40, 30), dtype=np.uint8)).save(tmp_path / "x.png")
    out = tmp_path / "a.parquet"
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "x.png"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert MaskTable(out).masks("x.png").shape == (3, 40, 30)
