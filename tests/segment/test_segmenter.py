from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from axnet.cli.segment import app
from axnet.data import ORGANS, PhantomXray, write_nih
from axnet.segment import Segmenter, SegmenterConfig, evaluate_segmenter, examine, fit_segmenter

SMALL = SegmenterConfig(size=64, channels=(8, 16, 32, 32))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """A segmenter trained for some seconds: enough to find every organ."""
    data = PhantomXray(150, size=64, split="train").materialize()
    return fit_segmenter(data, config=SMALL, epochs=14, lr=1e-2, progress=False)


def test_learns_the_anatomy_of_the_phantom(segmenter):
    measures = evaluate_segmenter(segmenter, PhantomXray(24, size=64, split="test"))
    assert set(measures) == set(ORGANS)
    assert min(values["Dice"] for values in measures.values()) > 0.8
    assert measures["heart"]["CTR error"] < 0.1


def test_masks_are_in_the_images_own_frame(segmenter):
    sample = PhantomXray(1, size=128, split="test").sample(0)
    wide = np.repeat(sample.image, 2, axis=1)
    square, stretched = segmenter.predict([sample.image, wide])
    assert square.masks.shape == (3, 128, 128)
    assert stretched.masks.shape == (3, 128, 256)
    overlap = (square.masks & stretched.masks[:, :, ::2]).sum() / square.masks.sum()
    assert overlap > 0.9
    assert 0.2 < square.ctr < 0.9
    assert square.quality > 0.3


def test_contrast_and_type_of_the_pixels_do_not_matter(segmenter):
    image = PhantomXray(1, size=64, split="test").sample(0).image
    first, second = segmenter.predict([image, (image.astype(np.float64) * 3 + 500)])
    assert (first.masks != second.masks).mean() < 0.01


def test_save_and_load_give_the_same_masks(segmenter, tmp_path):
    segmenter.save(tmp_path / "s.safetensors")
    loaded = Segmenter.load(tmp_path / "s.safetensors")
    image = PhantomXray(1, size=64, split="test").sample(0).image
    assert np.array_equal(segmenter.predict([image])[0].masks, loaded.predict([image])[0].masks)
    assert loaded.training_record["images"] == 150


def test_resume_continues_the_run(tmp_path):
    data = PhantomXray(12, size=64, split="train").materialize()
    options = {"config": SMALL, "out": tmp_path, "progress": False, "batch_size": 6}
    fit_segmenter(data, epochs=1, **options)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    fit_segmenter(data, epochs=3, resume=True, **options)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6


def test_checks_flag_what_is_implausible():
    good = np.zeros((3, 64, 64))
    good[0, 10:50, 36:60] = good[1, 10:50, 4:28] = good[2, 30:50, 24:42] = 1.0
    assert examine(good).flags == ()
    assert examine(good).quality == 1.0
    assert examine(good).ctr == pytest.approx(18 / 56)
    swapped = examine(good[[1, 0, 2]])
    assert "the lungs are on the wrong sides" in swapped.flags
    assert swapped.quality < 1
    empty = examine(np.zeros((3, 64, 64)))
    assert np.isnan(empty.ctr)
    assert empty.quality == 0
    scattered = good.copy()
    scattered[2, 0:12, 0:14] = 1.0
    assert "heart is in several parts" in examine(scattered).flags
    assert not examine(scattered).masks[2, 0, 0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.predict([np.zeros((3, 8, 8))]), r"images has an array of shape \(3, 8, 8\), expected \[H, W\]"),
        (lambda s: s.predict([], batch_size=0), "batch_size is 0, expected 1 or more"),
        (
            lambda s: s.predict_batch(torch.zeros(2, 3, 8, 8)),
            r"images has shape \[2, 3, 8, 8\], expected \[N, 1, H, W\]",
        ),
        (lambda s: evaluate_segmenter(s, PhantomXray(0)), "dataset is empty"),
        (lambda s: fit_segmenter(PhantomXray(0)), "train is empty"),
        (lambda s: fit_segmenter(PhantomXray(6), epochs=0), "epochs is 0, expected 1 or more"),
        (lambda s: fit_segmenter(PhantomXray(6), resume=True), "resume needs out"),
        (lambda s: Segmenter(SegmenterConfig(size=50)), "size is 50, expected a multiple of 16"),
        (lambda s: examine(np.zeros((2, 4, 4))), r"probabilities has shape \(2, 4, 4\), expected \[3, H, W\]"),
    ],
)
def test_bad_input_gets_one_sentence(segmenter, call, words):
    with pytest.raises(ValueError, match=words):
        call(segmenter)


def test_predict_command_goes_on_after_a_bad_file_and_repeats_nothing(segmenter, tmp_path):
    segmenter.save(tmp_path / "s.safetensors")
    root = write_nih(tmp_path / "nih", 6, size=64)
    folder = root / "images"
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[0]).write_bytes((folder / names[0]).read_bytes()[:100])
    arguments = ["predict", str(folder), "--weights", str(tmp_path / "s.safetensors"), "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 1
    assert "5 drawn, 0 were there, 1 failed" in first.output
    assert names[0] in first.output
    second = CliRunner().invoke(app, arguments)
    assert "0 drawn, 5 were there, 1 failed" in second.output
    assert len((tmp_path / "out" / "anatomy.csv").read_text().splitlines()) == 6
    for organ in ORGANS:
        assert len(list((tmp_path / "out" / organ).iterdir())) == 5
