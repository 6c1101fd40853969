from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch

from axnet.data import ORGANS, PhantomXray
from axnet.segment import Segmenter, SegmenterConfig, evaluate_segmenter, fit_segmenter, learner
from axnet.segment import segmenter as segmenter_module
from axnet.segment.learner import Learner


@pytest.fixture(scope="module")
def data() -> PhantomXray:
    return PhantomXray(12, size=64, split="train").materialize()


def state(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", ("supervised", "mean teacher"))
def test_a_run_that_was_cut_ends_as_the_whole_one(method, data, config, tmp_path, monkeypatch):
    options = {"config": config, "progress": False, "batch_size": 5, "epochs": 4}
    if method == "mean teacher":
        options["unlabelled"] = PhantomXray(7, size=64, split="val").materialize()
    whole = fit_segmenter(data, data, **options)
    calls = 0
    original = learner.augment

    def power_cut(*arguments):
        nonlocal calls
        calls += 1
        if calls == (15 if method == "mean teacher" else 8):  # within the third epoch of three steps
            raise OSError("power cut")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(learner, "augment", power_cut)
        with pytest.raises(OSError, match="power cut"):
            fit_segmenter(data, data, out=tmp_path, **options)
    assert state(tmp_path)["global_step"] == 6
    resumed = fit_segmenter(data, data, out=tmp_path, resume=True, **options)
    assert resumed.training_record == whole.training_record
    assert resumed.training_record["method"] == method
    assert same(resumed, whole)


def test_a_new_run_in_the_folder_replaces_the_state_of_the_old(data, config, tmp_path):
    options = {"config": config, "progress": False, "batch_size": 6, "out": tmp_path}
    fit_segmenter(data, epochs=3, **options)
    fit_segmenter(data, epochs=1, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert state(tmp_path)["global_step"] == 2
    fit_segmenter(data, epochs=2, resume=True, **options)
    assert state(tmp_path)["global_step"] == 4


def test_a_state_with_the_teacher_under_its_first_name_goes_on(data, config, tmp_path):
    options = {"config": config, "progress": False, "batch_size": 6}
    ends = []
    for folder in (tmp_path / "new", tmp_path / "old"):
        fit_segmenter(data, epochs=1, out=folder, **options)
        if folder.name == "old":
            stored = state(folder)
            weights = stored["state_dict"]
            del weights["average.n_averaged"]
            for name in [name for name in weights if name.startswith("average.module.")]:
                weights[name.replace("average.module.", "teacher.")] = weights.pop(name)
            torch.save(stored, folder / "last.ckpt")
        ends.append(fit_segmenter(data, epochs=2, resume=True, out=folder, **options))
    assert same(*ends)


def test_a_state_that_cannot_serve_is_refused(data, config, tmp_path):
    options = {"config": config, "progress": False, "batch_size": 6, "out": tmp_path}
    fit_segmenter(data, epochs=1, resume=True, **options)
    with pytest.raises(ValueError, match=r"is of a run with seed 0, expected 1; start again without resume"):
        fit_segmenter(data, epochs=2, resume=True, seed=1, **options)
    file = tmp_path / "last.ckpt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"last.ckpt' is damaged or was not written by fit_segmenter"):
        fit_segmenter(data, epochs=2, resume=True, **options)


def test_the_best_weights_on_validation_are_kept(data, config, monkeypatch):
    scores = iter([[0.2] * 3, [0.9, 0.8, 0.7], [0.1] * 3])
    states = []

    def scored(self, *_):
        states.append({name: value.clone() for name, value in self.teacher.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(Learner, "_validation_dice", scored)
    found = fit_segmenter(data, data, config=config, epochs=3, batch_size=6, progress=False)
    assert found.training_record["best_epoch"] == 1
    assert found.training_record["history"][1]["heart"] == 0.7
    assert all(torch.equal(value, states[1][name]) for name, value in found.state_dict().items())


def test_dice_in_training_is_that_of_the_evaluation(segmenter, data, monkeypatch):
    monkeypatch.setattr(segmenter_module, "_moved", lambda planes, back=False: planes)  # training looks once
    images, masks = data.images, data.organ_masks.to(torch.uint8) * 255
    watcher = Learner(segmenter, steps=1, lr=1.0, mirror=None, seed=0, val=None, run={})
    with torch.no_grad():
        prepared = (segmenter.prepare(images.float() / 255) * 255).round().to(torch.uint8)
        dice = watcher._validation_dice(prepared, masks)
    segmenter.eval()
    measured = evaluate_segmenter(segmenter, data)
    # the evaluation also keeps one part of each organ and fills its holes
    assert dice == pytest.approx([measured[organ]["Dice"] for organ in ORGANS], abs=0.03)


def test_background_is_taught_by_the_cross_entropy(segmenter):
    """A softmax over organs would give a pixel of the background, with no organ, no gradient beyond Dice's."""
    watcher = Learner(segmenter, steps=1, lr=1.0, mirror=None, seed=0, val=None, run={})
    image = torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8)
    nothing = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    watcher.log = lambda *_, **__: None
    logits = segmenter(image.float() / 255).detach().double()
    entropy = -torch.log1p(-logits.sigmoid()).mean().item()
    segmenter.eval()
    loss = float(watcher.training_step([image, nothing], 0).detach())
    dice = float(watcher.dice_loss(logits.float(), nothing.float()))
    assert loss - dice == pytest.approx(entropy, rel=1e-3)
    assert entropy > 1e-3


def test_max_steps_ends_the_run_early(data, config):
    found = fit_segmenter(data, data, config=config, epochs=50, max_steps=3, batch_size=6, progress=False)
    history = found.training_record["history"]
    assert len(history) == 2
    assert set(history[-1]) == {"loss", *ORGANS}  # the last step is always looked at
    assert all(math.isfinite(entry["loss"]) for entry in history)


def test_without_augmentation_the_same_epochs_fit_the_images_better(data, config):
    losses = [
        fit_segmenter(
            data, config=config, epochs=12, lr=1e-2, batch_size=6, progress=False, augment=augment
        ).training_record["history"][-1]["loss"]
        for augment in (False, True)
    ]
    assert losses[0] < losses[1]


def test_only_our_own_run_is_quiet(data, config, caplog, capfd):
    level = logging.getLogger("lightning.pytorch").level
    fit_segmenter(data, config=config, max_steps=1, progress=False)
    assert capfd.readouterr().out == ""
    assert not caplog.records
    assert logging.getLogger("lightning.pytorch").level == level


@pytest.mark.parametrize(
    ("options", "words"),
    (
        ({"epochs": 0}, "epochs is 0, expected 1 or more"),
        ({"max_steps": 0}, "max_steps is 0, expected 1 or more"),
        ({"lr": 0.0}, r"lr is 0.0, expected a positive number"),
        ({"mirror": 1.5}, r"mirror is 1.5, expected a number from 0 to 1"),
        ({"resume": True}, "resume needs out"),
        ({"val": PhantomXray(0)}, "val is empty"),
    ),
)
def test_bad_options_get_one_sentence(data, config, options, words):
    with pytest.raises(ValueError, match=words):
        fit_segmenter(data, **{"config": config, "progress": False, **options})


def test_init_gives_the_weights_at_any_size(segmenter, data, config):
    wider = replace(config, size=96)
    found = fit_segmenter(data, config=wider, init=segmenter, lr=1e-12, ema=0.0, epochs=1, progress=False)
    assert found.config.size == 96
    for (name, value), begun in zip(found.named_parameters(), segmenter.parameters(), strict=True):
        torch.testing.assert_close(value, begun, msg=name)
    assert found is not segmenter


def test_init_of_another_architecture_is_refused(segmenter, data, config):
    with pytest.raises(ValueError, match=r"init has channels \(8, 16, 32, 32\), expected \(8, 16, 32\) as in config"):
        fit_segmenter(data, config=replace(config, channels=(8, 16, 32)), init=segmenter)
    with pytest.raises(ValueError, match="init has residual_units 1, expected 2 as in config"):
        fit_segmenter(data, config=replace(config, residual_units=2), init=segmenter)
    with pytest.raises(ValueError, match="init has norm batch, expected instance as in config"):
        fit_segmenter(data, config=replace(config, norm="instance"), init=segmenter)


def test_a_run_resumes_only_from_the_weights_that_it_began_with(segmenter, data, config, tmp_path):
    options = {"config": config, "progress": False, "batch_size": 6, "out": tmp_path}
    fit_segmenter(data, epochs=1, init=segmenter, **options)
    with pytest.raises(ValueError, match=r"is of a run with init [0-9a-f]{16}, expected None"):
        fit_segmenter(data, epochs=2, resume=True, **options)
    fit_segmenter(data, epochs=2, init=segmenter, resume=True, **options)
    assert state(tmp_path)["global_step"] == 4


def test_an_empty_training_set_gets_one_sentence(config):
    with pytest.raises(ValueError, match="train is empty, expected images with organ masks"):
        fit_segmenter(PhantomXray(0), config=config)


def test_the_teacher_is_the_mean_of_the_students(data, config):
    watcher = Learner(Segmenter(config), steps=8, lr=1.0, mirror=None, seed=0, val=None, run={}, ema=0.5)
    name = "net.model.0.conv.unit0.conv.weight"
    first = watcher.segmenter.state_dict()[name].clone()
    with torch.no_grad():
        watcher.segmenter.state_dict()[name].add_(1.0)
    for _ in range(2):
        watcher.on_train_batch_end()
    # after (1 + 0) / (10 + 0) = 0.1 twice, 1 % of the first weights is left
    torch.testing.assert_close(watcher.teacher.state_dict()[name], first + 0.99)
    assert all(not parameter.requires_grad for parameter in watcher.teacher.parameters())
    assert all(parameter.requires_grad for parameter in watcher.result().parameters())


def test_consistency_pulls_the_student_to_the_teacher(data, config):
    watcher = Learner(Segmenter(config), steps=0, lr=1.0, mirror=None, seed=0, val=None, run={})
    watcher.log = lambda *_, **__: None
    watcher._ramp = lambda: 1.0
    labelled = [torch.zeros(2, 1, 64, 64, dtype=torch.uint8), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)]
    batch = {"labelled": labelled, "unlabelled": [data.images[:2].to(torch.uint8)]}
    losses = []
    for level in (-4.0, 4.0):  # of the teacher's logits; the student's are -2
        watcher.teacher.forward = lambda image, level=level: torch.full((len(image), 3, 64, 64), level)
        watcher.segmenter.forward = lambda image: torch.zeros(len(image), 3, 64, 64).requires_grad_() - 2.0
        losses.append(float(watcher.training_step(batch, 0).detach()))
    assert losses[1] - losses[0] == pytest.approx(2.0 * (torch.tensor(4.0).sigmoid() * 2 - 1).item(), rel=1e-3)


def test_consistency_grows_over_the_first_quarter(config, monkeypatch):
    watcher = Learner(Segmenter(config), steps=40, lr=1.0, mirror=None, seed=0, val=None, run={}, consistency=2.0)
    weights = []
    for step in (0, 5, 10, 30):
        monkeypatch.setattr(Learner, "global_step", step)
        weights.append(watcher._ramp())
    assert weights == pytest.approx([2.0 * math.exp(-5), 2.0 * math.exp(-1.25), 2.0, 2.0])


def test_labelled_images_are_changed_less_where_asked(data, config, monkeypatch):
    seen = []
    original = learner.augment

    def watched(image, mask, mirror=0.0, strength=1.0):
        seen.append((len(image), mirror, strength))
        return original(image, mask, mirror, strength)

    monkeypatch.setattr(learner, "augment", watched)
    others = PhantomXray(4, size=64, split="val").materialize()
    options = {"config": config, "max_steps": 1, "batch_size": 5, "progress": False}
    fit_segmenter(data, None, others, mirror=0.5, strength=0.2, **options)
    assert seen == [(5, 0.1, 0.2), (5, 0.5, 1.0)]
    with pytest.raises(ValueError, match=r"strength is 1.2, expected a number from 0 to 1"):
        fit_segmenter(data, strength=1.2, **options)


def test_every_step_shows_as_many_unlabelled_images_as_labelled(data, config, monkeypatch):
    seen = []
    original = Learner.training_step

    def watched(self, batch, index):
        seen.append((len(batch["labelled"][0]), len(batch["unlabelled"][0])))
        return original(self, batch, index)

    monkeypatch.setattr(Learner, "training_step", watched)
    others = PhantomXray(4, size=64, split="val").materialize()
    found = fit_segmenter(data, None, others, config=config, epochs=1, batch_size=6, progress=False)
    assert seen == [(6, 6), (6, 6)]
    assert found.training_record["unlabelled"] == 4


@pytest.mark.parametrize(("name", "value"), (("ema", 1.5), ("mirror", -0.1), ("consistency", -1.0)))
def test_shares_out_of_range_are_named(data, config, name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}, expected"):
        fit_segmenter(data, config=config, **{name: value})


def test_the_callers_default_type_is_not_the_runs():
    torch.set_default_dtype(torch.float64)
    try:
        trained = fit_segmenter(
            PhantomXray(4, size=64), config=SegmenterConfig(size=64, channels=(8, 16, 16)), epochs=1, progress=False
        )
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in trained.parameters()} == {torch.float32}
