from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from axnet.models import Preprocessing, load_classifier
from axnet.train import Augmentation, DataConfig, FitConfig, XraySet, fit, open_part, predict
from axnet.train.fitting import _precision
from axnet.train.module import ClassifierModule
from axnet.train.schedule import cosine, one_cycle

OPTIONS = {"backbone": "tiny", "reduction": 0.25}


@pytest.fixture(scope="module")
def sets() -> tuple[XraySet, XraySet]:
    data = open_part(DataConfig(train_images=96, workers=0), "train", Preprocessing(size=32))
    return data.split_by_patient(0.25)


def config(out: Path, **changes: object) -> FitConfig:
    settings = {"epochs": 2, "batch_size": 16, "accelerator": "cpu", "progress": False, "options": OPTIONS}
    return FitConfig(out=str(out), **{**settings, **changes})


@pytest.fixture(scope="module")
def begun(sets: tuple[XraySet, XraySet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    out = tmp_path_factory.mktemp("begun")
    fit(config(out), *sets)
    return out


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_run_leaves_what_it_says(tmp_path: Path, sets: tuple[XraySet, XraySet], capfd: pytest.CaptureFixture) -> None:
    train, validation = sets
    result = fit(config(tmp_path), train, validation)
    assert result.steps == 2 * (len(train) // 16)
    assert 0 < result.val_auc < 1
    assert not result.model.training
    assert result.preprocessing.size == 32
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    logs = {path.name.split(".")[0] for path in (tmp_path / "logs").iterdir()}
    assert logs >= {"metrics", "events"}
    assert json.loads((tmp_path / "config.json").read_text())["options"] == OPTIONS
    model, info = load_classifier(result.weights)
    assert same(model, result.model)
    assert info.classes == train.findings
    assert info.preprocessing == result.preprocessing
    assert info.training["batch_size"] == 16
    scores = predict(model, validation, info.preprocessing, batch_size=7)
    assert scores.shape == (len(validation), 14)
    assert scores == pytest.approx(predict(result.model, validation, result.preprocessing), abs=1e-5)
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_holds_no_code(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    fit(config(tmp_path, epochs=1), *sets)
    stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["epoch"] == 0


def test_learning(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    train, _ = sets
    bright = torch.randint(0, 2, (len(train),), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = train.images // 2 + 100 * bright.view(-1, 1, 1, 1)
    easy = replace(train, images=images, labels=bright.float()[:, None], findings=("bright",))
    options = {"architecture": "densenet-gap", "options": {"backbone": "tiny"}, "augmentation": None}
    result = fit(config(tmp_path, epochs=12, lr=1e-2, ema_decay=None, logs=False, **options), easy)
    scores = torch.from_numpy(predict(result.model, easy, result.preprocessing))[:, 0]
    assert scores[bright == 1].min() > scores[bright == 0].max()


def test_same_seed_same_weights(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fit(config(tmp_path / "a", epochs=1, logs=False), *sets)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(first.model, fit(config(tmp_path / "b", epochs=1, logs=False), *sets).model)
    assert not same(first.model, fit(config(tmp_path / "c", epochs=1, logs=False, seed=1), *sets).model)


def test_resume_repeats_the_run_bit_by_bit(
    tmp_path: Path, sets: tuple[XraySet, XraySet], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 3, "select": "last", "sampling": "balanced", "mixup": 0.2, "layer_decay": 0.9}
    whole = fit(config(tmp_path / "whole", **settings), *sets)
    step = ClassifierModule.training_step

    def interrupted(self: ClassifierModule, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 2 and batch_idx == 1:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassifierModule, "training_step", interrupted)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(config(tmp_path / "cut", **settings), *sets)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    monkeypatch.setattr(ClassifierModule, "training_step", step)
    resumed = fit(config(tmp_path / "cut", **settings, resume=True), *sets)
    assert resumed.steps == whole.steps
    assert same(resumed.model, whole.model)
    logged = [(tmp_path / run / "logs" / "metrics.csv").read_text() for run in ("cut", "whole")]
    assert logged[0] == logged[1]
    assert [line.split(",")[0] for line in logged[0].splitlines()] == ["epoch", *(str(n // 2) for n in range(6))]


@pytest.mark.parametrize("watched", [True, False])
def test_a_run_that_diverges_ends_and_keeps_the_epoch_before(
    tmp_path: Path, sets: tuple[XraySet, XraySet], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    train, validation = sets
    step = ClassifierModule.training_step

    def diverging(self: ClassifierModule, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        return loss * float("nan") if self.current_epoch == 1 else loss

    monkeypatch.setattr(ClassifierModule, "training_step", diverging)
    with pytest.raises(
        ValueError, match=r"lr is 0.001 with precision '32-true', but in epoch 1 some weights became infinite"
    ):
        fit(config(tmp_path, epochs=3), train, validation if watched else None)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    monkeypatch.setattr(ClassifierModule, "training_step", step)
    assert fit(config(tmp_path, epochs=3, resume=True), train, validation if watched else None).steps == 3 * (
        len(train) // 16
    )


def test_the_last_epoch_is_kept_where_it_is_not_the_best(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    train, validation = sets
    random = replace(validation, labels=torch.rand(validation.labels.shape).round())
    for epochs in (1, 2, 3, 4):
        fit(config(tmp_path, epochs=epochs, resume=epochs > 1), train, random)
        assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == epochs - 1


def test_resume_keeps_the_logged_numbers(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    fit(config(tmp_path), *sets)
    first = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    for epochs in (3, 4):  # a longer run, twice
        fit(config(tmp_path, epochs=epochs, resume=True, workers=1), *sets)
        later = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
        assert later[: len(first)] == first
        assert len(later) == 1 + 2 * epochs
    assert {path.name for path in (tmp_path / "logs").glob("*.csv")} == {"metrics.csv"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 2e-3}, r"lr is 0\.002, but the run in '.*' began with 0\.001: resume takes its settings"),
        ({"seed": 1}, "seed is 1, but the run in '.*' began with 0"),
        ({"batch_size": 8}, "batch_size is 8, but the run in '.*' began with 16"),
        ({"loss": "focal"}, "loss is 'focal'"),
        ({"sampling": "balanced"}, "sampling is 'balanced'"),
        ({"augmentation": None}, "augmentation is None"),
        ({"augmentation": Augmentation(flip=0.5)}, "augmentation is .*0.5"),
        ({"options": {"backbone": "tiny"}}, "options is"),
        ({"precision": "bf16-mixed"}, "precision is 'bf16-mixed'"),
    ],
)
def test_resume_refuses_other_settings(
    begun: Path, sets: tuple[XraySet, XraySet], changes: dict[str, object], words: str
) -> None:
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=words):
        fit(config(begun, epochs=3, resume=True, **changes), *sets)
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_a_refused_resume_begins_no_run_of_a_logger(
    begun: Path, sets: tuple[XraySet, XraySet], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr("axnet.train.fitting.loggers", lambda *asked: made.append(asked) or [])
    with pytest.raises(ValueError, match=r"lr is 0\.002"):
        fit(config(begun, epochs=3, resume=True, lr=2e-3, logs=True), *sets)
    assert not made


def test_resume_refuses_other_sets(begun: Path, sets: tuple[XraySet, XraySet]) -> None:
    train, validation = sets
    assert train.masks is not None
    for name, changed in (
        ("train", (train.subset(range(len(train) - 1)), validation)),
        ("train", (replace(train, labels=1 - train.labels), validation)),
        ("train", (replace(train, masks=255 - train.masks), validation)),
        ("validation", (train, replace(validation, images=255 - validation.images))),
        ("validation", (train, None)),
    ):
        with pytest.raises(ValueError, match=f"{name} holds other films, labels or masks than the run in"):
            fit(config(begun, epochs=3, resume=True), *changed)


def test_resume_reads_the_record_of_an_older_axnet(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    fit(config(tmp_path, epochs=1), *sets)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["sets"], record["schedule"], record["mixup"], record["augmentation"]["blur"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"schedule is 'cosine', but the run in '.*' began with 'one-cycle'"):
        fit(config(tmp_path, resume=True, schedule="cosine"), *sets)
    assert fit(config(tmp_path, resume=True), *sets).steps > 0
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"resume needs '.*config\.json', which is damaged"):
        fit(config(tmp_path, resume=True), *sets)


def test_resume_needs_a_checkpoint(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    with pytest.raises(FileNotFoundError, match=r"resume needs '.*last\.ckpt', which does not exist"):
        fit(config(tmp_path, resume=True), *sets)


def test_best_weights_are_kept(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    result = fit(config(tmp_path, epochs=3, precise_bn=0), *sets)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    stored = {name.removeprefix("model."): value for name, value in best["state_dict"].items()}
    assert all(torch.equal(value, stored[name]) for name, value in result.model.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal", "optimizer": "adam", "schedule": "cosine"},
        {"pos_weight": True, "schedule": "constant", "ema_decay": None},
        {"accumulate": 2, "precision": "bf16-mixed"},
        {"max_steps": 3},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"loss": "asymmetric", "label_smoothing": 0.1, "mixup": 0.4, "sampling": "balanced", "layer_decay": 0.8},
        {"loss": "auc-margin", "augmentation": Augmentation(gamma=0.5, noise=0.05, blur=1.0, erase=0.5)},
    ],
)
def test_options(tmp_path: Path, sets: tuple[XraySet, XraySet], changes: dict[str, object]) -> None:
    train, validation = sets
    result = fit(config(tmp_path, epochs=1, logs=False, **changes), train, validation)
    batches = len(train) // 16
    expected = {"max_steps": 3, "accumulate": -(-batches // 2)}
    assert result.steps == next((expected[name] for name in expected if name in changes), batches)
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())
    kind = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(str(changes.get("precision")), torch.float32)
    assert {parameter.dtype for parameter in result.model.parameters()} == {kind}


def test_averaged_weights_differ_from_the_last(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    averaged = fit(config(tmp_path / "a", epochs=1, logs=False, ema_decay=0.9), *sets).model
    plain = fit(config(tmp_path / "b", epochs=1, logs=False, ema_decay=None), *sets).model
    assert not same(averaged, plain)
    counters = [value for name, value in averaged.state_dict().items() if name.endswith("num_batches_tracked")]
    assert all(not value.is_floating_point() for value in counters)


@pytest.mark.parametrize("architecture", ["anatomy-xnet", "densenet-gap"])
def test_a_compiled_network_trains_to_the_same_weights(
    tmp_path: Path, sets: tuple[XraySet, XraySet], monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """Without a compiler behind it: that the whole network is one graph, and that what is saved is the plain one."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    options = OPTIONS if architecture == "anatomy-xnet" else {"backbone": "tiny"}
    settings = {"architecture": architecture, "options": options, "max_steps": 2}
    plain = fit(config(tmp_path / "a", **settings), *sets)
    compiled = fit(config(tmp_path / "b", compile=True, **settings), *sets)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    for one, other in zip(compiled.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert load_classifier(compiled.weights)[1].training["compile"]


@pytest.mark.parametrize(
    ("gpu", "bf16", "accelerator", "expected"),
    [
        (True, True, "auto", "bf16-mixed"),
        (True, True, "gpu", "bf16-mixed"),
        (True, False, "auto", "32-true"),
        (True, True, "cpu", "32-true"),
        (False, False, "auto", "32-true"),
    ],
)
def test_precision_by_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool, accelerator: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert _precision(config(tmp_path, accelerator=accelerator)) == expected
    assert _precision(config(tmp_path, accelerator=accelerator, precision="64-true")) == "64-true"


def test_schedules() -> None:
    assert one_cycle(0.0) == pytest.approx(0.04)
    assert one_cycle(0.2) == pytest.approx(1.0)
    assert one_cycle(1.0) == pytest.approx(0.0)
    assert [cosine(x) for x in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([1, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected 1 or more"),
        ({"lr": 0}, "lr is 0, expected a positive number"),
        ({"precise_bn": -1}, "precise_bn is -1, expected 0 or more"),
        ({"lr": float("inf")}, "lr is inf, expected a positive number"),
        ({"weight_decay": float("nan")}, "weight_decay is nan, expected 0 or a positive number"),
        ({"gradient_clip": -1.0}, r"gradient_clip is -1\.0, expected 0 or a positive number"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0, expected a number between 0 and 1"),
        ({"precision": "fp16"}, r"precision is 'fp16', expected one of \('auto', '32-true', 'bf16-mixed'"),
        ({"loss": "mse"}, r"loss is 'mse', expected one of \('bce', 'focal', 'asymmetric', 'auc-margin'\)"),
        ({"pos_weight": True, "loss": "asymmetric"}, "pos_weight is True with loss 'asymmetric'"),
        ({"label_smoothing": 1}, "label_smoothing is 1, expected a number from 0 to below 1"),
        ({"mixup": -1}, "mixup is -1, expected 0 or a positive number"),
        ({"mixup": float("nan")}, "mixup is nan, expected 0 or a positive number"),
        ({"mixup": 0.2, "loss": "auc-margin"}, "mixup is 0.2 with loss 'auc-margin', which takes labels of 0 and 1"),
        ({"label_smoothing": 0.1, "loss": "auc-margin"}, "label_smoothing is 0.1 with loss 'auc-margin'"),
        ({"sampling": "rare"}, r"sampling is 'rare', expected one of \('uniform', 'balanced'\)"),
        ({"layer_decay": 0}, "layer_decay is 0, expected a number above 0, up to 1"),
        ({"logger": ("csv", "paper")}, "logger is 'paper', expected names out of"),
        ({"architecture": "vit"}, "architecture is 'vit', expected one of"),
        ({"pos_weight": True, "loss": "focal"}, "pos_weight is True with loss 'focal'"),
        ({"max_steps": 0}, "max_steps is 0, expected 1 or more"),
        ({"strategy": "fsdp"}, r"strategy is 'fsdp', expected one of \('ddp', 'fsdp2'\)"),
        (
            {"strategy": "fsdp2", "sync_batchnorm": False},
            "sync_batchnorm is False with strategy 'fsdp2', expected True",
        ),
    ],
)
def test_config_errors(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_several_processes_are_not_compiled(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    with pytest.raises(ValueError, match="compile is on with 2 processes, expected one process with it"):
        fit(config(tmp_path / "out", compile=True, devices=2), *sets)
    assert not list((tmp_path / "out").iterdir())


def test_one_process_has_nothing_to_share(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    with pytest.raises(ValueError, match="strategy is 'fsdp2' with 1 process, expected several processes with it"):
        fit(config(tmp_path / "out", strategy="fsdp2", devices=1), *sets)
    assert not list((tmp_path / "out").iterdir())


def test_a_set_is_checked_where_it_is_made(sets: tuple[XraySet, XraySet]) -> None:
    """Masks in [0, 1] would be divided by 255 and count as nearly nothing."""
    data = sets[0]
    assert data.masks is not None
    for name in ("images", "masks"):
        with pytest.raises(TypeError, match=rf"{name} has dtype torch.float32, expected uint8 from 0 to 255"):
            replace(data, **{name: getattr(data, name)[:].float() / 255})
    for name in ("masks", "labels", "ids", "patients"):
        with pytest.raises(ValueError, match=rf"{name} has 3 entries, expected one for each of {len(data)} images"):
            replace(data, **{name: getattr(data, name)[:3]})


def test_sets_that_do_not_fit(tmp_path: Path, sets: tuple[XraySet, XraySet]) -> None:
    train, validation = sets
    with pytest.raises(ValueError, match="patients are in both train and validation"):
        fit(config(tmp_path), train, train)
    with pytest.raises(ValueError, match="validation has findings"):
        fit(config(tmp_path), train, replace(validation, findings=("Mass",) * 14))
    with pytest.raises(ValueError, match="data has no masks"):
        fit(config(tmp_path), replace(train, masks=None), validation)
    with pytest.raises(ValueError, match=r"ema_decay is 1\.5, expected"):
        fit(config(tmp_path, ema_decay=1.5), train, validation)
    with pytest.raises(ValueError, match="does not fit architecture 'densenet-gap'"):
        fit(config(tmp_path, architecture="densenet-gap"), train, validation)
    with pytest.raises(ValueError, match="data has images of 32 pixels, the model expects 64"):
        predict(torch.nn.Linear(1, 1), train, Preprocessing(size=64))
