"""Test-time augmentation, facts of films, localisation and the choice of operating points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from axnet.data import NIHChestXray, PhantomXray, write_nih
from axnet.metrics import operating_points
from axnet.models import (
    AnatomyXNet,
    Calibration,
    DenseNetGAP,
    Preprocessing,
    load_classifier,
    save_classifier,
    store_calibration,
)
from axnet.train import DataConfig, Facts, Views, XraySet, calibrate, open_part, predict
from axnet.train.calibrating import parse_rule
from axnet.train.facts import FilmBox
from axnet.train.localising import SIZES, finding_maps, localise
from axnet.train.scoring import predict_logits


@pytest.fixture(scope="module")
def films() -> XraySet:
    return open_part(DataConfig(test_images=12, workers=0), "test", Preprocessing(size=32))


def test_views_move_image_and_mask_together() -> None:
    image, mask = torch.zeros(1, 1, 40, 40), torch.zeros(1, 2, 40, 40)
    image[..., 20, 10], mask[..., 20, 10] = 1, 1
    seen = list(Views(shifts=(0.1,), scales=(2.0,), flip=True).of(image, mask))
    assert len(seen) == len(Views(shifts=(0.1,), scales=(2.0,), flip=True)) == 12
    assert torch.equal(seen[0][0], image)
    assert torch.equal(seen[1][0], image.flip(-1))
    places = [(int(one.argmax()) // 40, int(one.argmax()) % 40) for one, _ in seen[::2]]
    assert places[:5] == [(20, 10), (20, 14), (20, 6), (24, 10), (16, 10)]
    assert places[5][1] < 3  # twice as far from the middle
    for one, organs in seen:
        torch.testing.assert_close(one[:, 0], organs[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "message"), [({"shifts": (0.6,)}, "shifts has 0.6"), ({"scales": (1,)}, "scales has 1")]
)
def test_views_out_of_range(given: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(**given)  # type: ignore[arg-type]


def test_logits_are_averaged_over_the_views(films: XraySet) -> None:
    torch.manual_seed(0)
    model = AnatomyXNet(14, 2, "tiny", reduction=0.25)
    plain = predict_logits(model, films, films.preprocessing)
    np.testing.assert_allclose(1 / (1 + np.exp(-plain)), predict(model, films, films.preprocessing), rtol=1e-5)
    none = predict_logits(model, films, films.preprocessing, views=Views((), ()))
    np.testing.assert_array_equal(none, plain)
    mirrored = predict_logits(model, films, films.preprocessing, views=Views((), (), flip=True))
    other = predict_logits(
        model,
        XraySet(**{**vars(films), "images": films.images.flip(-1), "masks": films.masks.flip(-1)}),  # type: ignore[union-attr]
        films.preprocessing,
    )
    np.testing.assert_allclose(mirrored, (plain + other) / 2, atol=1e-5)


def test_facts_of_nih_and_the_phantom(tmp_path: Path) -> None:
    source = NIHChestXray(write_nih(tmp_path / "nih", 24, seed=3, size=64), "all")
    facts = Facts.of(source)
    assert set(facts.attributes) == {"sex", "age", "view"}
    assert set(facts.attributes["sex"]) <= {"F", "M"}
    assert facts.attributes["view"] == tuple(source.table["view"])
    assert facts.boxes
    for box in facts.boxes:
        first = source.boxes(source.ids[box.row])
        assert (box.finding, box.x * 64) in [(one.finding, pytest.approx(one.x)) for one in first]
    phantom = PhantomXray(8, seed=3, split="test", size=48)
    drawn = Facts.of(phantom)
    assert drawn.attributes["age"][0] is not None
    assert len(drawn.boxes) == sum(len(phantom.boxes(name)) for name in phantom.ids)


@pytest.mark.parametrize("kind", ["maps", "one map", "grad-cam"])
def test_a_map_that_points_at_the_box_finds_it(kind: str, films: XraySet) -> None:
    torch.manual_seed(0)
    if kind == "grad-cam":
        model: torch.nn.Module = DenseNetGAP(14, "tiny")
    else:
        model = AnatomyXNet(14, 2, "tiny", reduction=0.25, num_maps="classes" if kind == "maps" else 1)
    maps = finding_maps(model, films.preprocessing, films, [2, 5], [3, 4])
    assert maps.shape[:2] == (2, 14)
    assert maps.min() >= 0
    assert maps.max() <= 1
    row, column = np.unravel_index(int(maps[1, 3].argmax()), maps.shape[2:])
    side = 1 / maps.shape[-1]
    there = FilmBox(5, films.findings[3], column * side, row * side, side, side)
    found = localise(model, films.preprocessing, films, [there])
    assert found is not None
    assert found.maps == ("Grad-CAM" if kind == "grad-cam" else "probability maps")
    assert found.result.hit.all()
    assert localise(model, films.preprocessing, films, []) is None
    size = next(name for name, top in SIZES if side**2 < top)
    assert list(found.to_dict()["parts"]) == ["all boxes", size, films.findings[3]]


def test_grad_cam_of_an_average_is_the_class_activation_map(films: XraySet) -> None:
    torch.manual_seed(0)
    model = DenseNetGAP(14, "tiny").eval()
    found = finding_maps(model, films.preprocessing, films, [0, 1], [7])[:, 7]
    image = films.preprocessing.normalize(films.images[:2].float() / 255)
    with torch.no_grad():
        features = model.backbone(image)[-1]
        cam = torch.einsum("nchw,c->nhw", features, model.classifier.weight[7]).relu()  # type: ignore[union-attr]
    expected = cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("temperature", ["overall", "per-finding"])
def test_a_calibration_is_chosen_stored_and_read(tmp_path: Path, temperature: str) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 3)) < [0.4, 0.2, 0.01]).astype(np.float32)
    logits = (3 * (labels - 0.5 + rng.normal(size=labels.shape))).astype(np.float32)
    logits[:, 1] *= 4
    rule, target = parse_rule("sensitivity=0.9")
    chosen = calibrate(labels, logits, rule, target, temperature=temperature, films="some")  # type: ignore[arg-type]
    assert chosen.thresholds[2] is None
    if temperature == "per-finding":
        assert isinstance(chosen.temperature, tuple)
        assert chosen.temperature[1] > 2 * chosen.temperature[0]
    file = tmp_path / "a.safetensors"
    model = DenseNetGAP(3, "tiny").half()
    save_classifier(file, model, Preprocessing(size=32), ("a", "b", "c"))
    size = file.stat().st_size
    store_calibration(file, chosen)
    assert abs(file.stat().st_size - size) < 3000  # of half precision still
    read = load_classifier(file)[1].calibration
    assert read == chosen
    assert isinstance(read, Calibration)
    probabilities = read.probabilities(torch.from_numpy(logits))
    calls = np.array(read.calls(probabilities), dtype=object)
    for k in range(2):
        called = calls[:, k].astype(bool)
        assert called[labels[:, k] == 1].mean() >= 0.9 - 1e-9
        assert 1000 * called.mean() == pytest.approx(read.positives_per_1000[k], abs=0.1)
        expected = operating_points(labels[:, [k]], logits[:, [k]], rule, target)[0]
        assert called.sum() == (logits[:, k] >= expected.threshold).sum()
    save_classifier(file, DenseNetGAP(2, "tiny"), Preprocessing(size=32), ("a", "b"))
    with pytest.raises(ValueError, match="calibration has 3 thresholds for 2 classes"):
        store_calibration(file, chosen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "rule is 'best', expected youden"),
        ("sensitivity", "expected the sensitivity to reach, as in sensitivity=0.9"),
        ("youden=0.5", "expected youden alone"),
        ("specificity=90", "expected a number between 0 and 1"),
        ("prevalence=x", "expected a number between 0 and 1"),
    ],
)
def test_rules_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rule(text)
    assert parse_rule("prevalence") == ("prevalence", None)
    assert parse_rule("prevalence=0.1") == ("prevalence", 0.1)


def test_a_calibration_where_findings_are_ranked_worse_than_chance() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < 0.4).astype(np.float32)
    logits = (2 * labels - 1 + rng.normal(size=labels.shape)).astype(np.float32)
    logits[:, 1] *= -1  # worse than chance: no temperature of its own
    overall = calibrate(labels, logits, films="some").temperature
    chosen = calibrate(labels, logits, "specificity", 0.9, temperature="per-finding", films="some")
    assert isinstance(chosen.temperature, tuple)
    assert chosen.temperature[1] == overall
    assert chosen.temperature[0] != overall
