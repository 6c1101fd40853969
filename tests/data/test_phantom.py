from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from axnet.data import NIH_FINDINGS
from axnet.data.phantom import PhantomSample, render, render_study, rendering, study

GEOMETRIC = ("Atelectasis", "Cardiomegaly", "Emphysema", "Fibrosis")
"""Findings that reshape the chest, so that masks differ from those of the same chest without them."""


@pytest.fixture(scope="module")
def samples() -> list[PhantomSample]:
    return [render(index, seed=11) for index in range(150)]


def with_label(index: int, *findings: str, size: int = 128, seed: int = 0, view: str = "PA") -> PhantomSample:
    label = np.array([finding in findings for finding in NIH_FINDINGS])
    return render_study(dataclasses.replace(study(index, seed=seed), label=label, view=view), size)


def digest(sample: PhantomSample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.masks.tobytes() + sample.label.tobytes()).hexdigest()


def test_types(samples: list[PhantomSample]) -> None:
    sample = samples[0]
    assert sample.image.shape == (128, 128)
    assert sample.image.dtype == np.uint8
    assert sample.masks.shape == (3, 128, 128)
    assert sample.masks.dtype == np.bool_
    assert sample.label.shape == (14,)
    assert sample.label.dtype == np.bool_
    assert {s.view for s in samples} == {"PA", "AP"}
    assert {s.sex for s in samples} == {"M", "F"}
    assert all(18 <= s.age <= 95 for s in samples)


def test_same_bits_in_any_order_and_process() -> None:
    forward = [digest(render(index, seed=4)) for index in (3, 20, 7)]
    assert forward == [digest(render(index, seed=4)) for index in (7, 20, 3)][::-1]
    code = (
        "import hashlib; from axnet.data.phantom import render\n"
        "for i in (3, 20, 7):\n"
        "    s = render(i, seed=4); h = s.image.tobytes() + s.masks.tobytes() + s.label.tobytes()\n"
        "    print(hashlib.sha256(h).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert other.stdout.split() == forward


def test_index_and_seed_matter() -> None:
    assert len({digest(render(index, seed=seed)) for index in range(4) for seed in range(3)}) == 12


def test_another_size_shows_the_same_chest() -> None:
    for index in range(6):
        small, large = render(index, size=64), render(index, size=128)
        assert np.array_equal(small.label, large.label)
        assert small.name == large.name
        reduced = large.masks.reshape(3, 64, 2, 64, 2).mean((2, 4)) >= 0.5
        overlap = (reduced & small.masks).sum((1, 2)) / (reduced | small.masks).sum((1, 2))
        assert overlap.min() > 0.93
        grey = large.image.reshape(64, 2, 64, 2).mean((1, 3))
        assert np.corrcoef(grey.ravel(), small.image.ravel())[0, 1] > 0.95


def test_masks_have_anatomical_sizes_and_sides(samples: list[PhantomSample]) -> None:
    columns = np.arange(128)
    for sample in samples:
        left, right, heart = sample.masks
        assert 0.05 < left.mean() < 0.25
        assert 0.05 < right.mean() < 0.25
        assert 0.03 < heart.mean() < 0.22
        assert not (left & right).any()
        assert not ((left | right) & heart).any()
        centre = [(mask * columns).sum() / mask.sum() for mask in (left, right, heart)]
        assert centre[1] < centre[2] < centre[0], "left lung on the image's right, heart between the lungs"
        for lung in (left, right):
            _, parts = ndimage.label(lung)
            assert (
                parts == 1 or ndimage.sum(lung, ndimage.label(lung)[0], range(1, parts + 1)).max() > 0.97 * lung.sum()
            )


def test_heart_leans_to_the_patients_left(samples: list[PhantomSample]) -> None:
    offsets = []
    for sample in samples:
        across = [np.flatnonzero(mask.any(axis=0)) for mask in sample.masks]
        midline = (across[0].max() + across[1].min()) / 2
        offsets.append((across[2].min() + across[2].max()) / 2 - midline)
    assert np.mean(offsets) > 3
    assert np.mean(np.array(offsets) > 0) > 0.95


def test_masks_match_what_is_seen() -> None:
    contrast = []
    for index in range(12):
        sample = with_label(index)
        lungs, heart = sample.masks[:2].any(0), sample.masks[2]
        grey = sample.image.astype(float)
        contrast.append(grey[heart].mean() - grey[lungs].mean())
        # Shifting the true mask must fit the image worse: the contrast across its border is largest in place.
        fit = {}
        for shift in (-6, 0, 6):
            moved = np.roll(lungs, shift, axis=0)
            rim = ndimage.binary_dilation(moved, iterations=4) & ~ndimage.binary_dilation(moved, iterations=1)
            core = moved & ~ndimage.binary_erosion(moved, iterations=4)
            fit[shift] = grey[rim].mean() - grey[core].mean()
        assert fit[0] > fit[6]
        assert fit[0] > fit[-6]
    assert min(contrast) > 40


def test_cardiomegaly_widens_heart_and_mask() -> None:
    for view in ("PA", "AP"):
        plain = np.array([with_label(index, view=view).ctr for index in range(25)])
        large = np.array([with_label(index, "Cardiomegaly", view=view).ctr for index in range(25)])
        assert (large > plain).all()
        assert large.min() >= 0.5
        assert np.median(large) - np.median(plain) > 0.05
    pa = [with_label(index).ctr for index in range(25)]
    ap = [with_label(index, view="AP").ctr for index in range(25)]
    assert min(pa) > 0.35
    assert max(pa) < 0.525
    assert np.mean(ap) > np.mean(pa)


def test_emphysema_lengthens_lungs() -> None:
    def height(sample: PhantomSample) -> int:
        return int(sample.masks[:2].any((0, 2)).sum())

    gain = [height(with_label(index, "Emphysema")) - height(with_label(index)) for index in range(12)]
    assert np.mean(gain) > 1


@pytest.mark.parametrize("finding", NIH_FINDINGS)
def test_each_finding_shows_inside_the_anatomy(finding: str) -> None:
    changed = []
    for index in range(8):
        plain, ill = with_label(index), with_label(index, finding)
        difference = np.abs(ill.image.astype(int) - plain.image.astype(int))
        changed.append(difference[ill.masks.any(0)].max())
        assert [box.finding for box in ill.boxes].count(finding) == len(ill.boxes) > 0
        if finding not in GEOMETRIC:
            assert np.array_equal(plain.masks, ill.masks), "masks stay the anatomical lung under an opacity"
        if finding not in (*GEOMETRIC, "Hernia"):
            blurred = ndimage.binary_dilation(plain.masks.any(0), np.ones((3, 3)), iterations=3)
            assert difference[~blurred].max() == 0
    assert np.median(changed) > 8, "the finding is invisible"


@pytest.mark.parametrize(
    "finding", ["Effusion", "Consolidation", "Pneumonia", "Infiltration", "Edema", "Mass", "Nodule"]
)
def test_opacities_brighten_their_box(finding: str) -> None:
    for index in range(8):
        plain, ill = with_label(index), with_label(index, finding)
        for box in ill.boxes:
            region = np.s_[int(box.y) : int(box.y + box.h), int(box.x) : int(box.x + box.w)]
            assert (ill.image[region].astype(int) - plain.image[region]).mean() > 0.5


def test_pneumothorax_darkens_the_periphery() -> None:
    for index in range(8):
        plain, ill = with_label(index), with_label(index, "Pneumothorax")
        difference = ndimage.uniform_filter(ill.image.astype(float) - plain.image, 3)
        darker = (difference < -3) & ill.masks[:2].any(0)
        depth = ndimage.distance_transform_edt(ndimage.binary_fill_holes(ill.masks.any(0)))
        assert darker.sum() > 15, "no pixel lost its lung"
        assert np.median(depth[darker]) < 0.5 * depth.max()


def test_boxes_are_those_of_the_label(samples: list[PhantomSample]) -> None:
    for sample in samples:
        present = {finding for finding, positive in zip(NIH_FINDINGS, sample.label, strict=True) if positive}
        assert {box.finding for box in sample.boxes} == present
        for box in sample.boxes:
            assert box.x >= 0
            assert box.y >= 0
            assert box.w >= 1
            assert box.h >= 1
            assert box.x + box.w <= 128
            assert box.y + box.h <= 128
            if box.finding in ("Nodule", "Mass", "Pneumonia", "Consolidation"):
                row, column = int(box.y + box.h / 2), int(box.x + box.w / 2)
                near = sample.masks.any(0)[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9]
                assert near.any(), "a finding of the lungs lies in the lungs"


def test_distractors_lie_outside_the_anatomy(monkeypatch: pytest.MonkeyPatch) -> None:
    with_them = [with_label(index) for index in range(20)]
    monkeypatch.setattr(rendering, "draw_distractors", lambda *_: None)
    without = [with_label(index) for index in range(20)]
    outside = []
    for a, b in zip(with_them, without, strict=True):
        difference = np.abs(a.image.astype(int) - b.image.astype(int))
        anatomy = ndimage.binary_erosion(a.masks.any(0), np.ones((3, 3)), iterations=3)
        assert difference[anatomy].max() == 0
        assert a.boxes == b.boxes
        outside.append(difference.max())
    assert np.mean(np.array(outside) > 15) > 0.8


def test_view_ap_raises_the_diaphragm() -> None:
    def bottom(sample: PhantomSample) -> float:
        return float(sample.masks[:2].any(0).sum() / sample.masks[:2].any((0, 1)).sum())

    pa, ap = [bottom(with_label(i)) for i in range(25)], [bottom(with_label(i, view="AP")) for i in range(25)]
    assert np.mean(ap) < np.mean(pa) - 2


def test_argument_errors() -> None:
    with pytest.raises(ValueError, match="index and seed are -1 and 0"):
        render(-1)
    with pytest.raises(ValueError, match="size is 16, expected 32"):
        render(0, size=16)
    with pytest.raises(ValueError, match=r"prevalence is 0\.5"):
        render(0, prevalence=0.5)
