"""The whole method in a few minutes: segmenter, masks, Anatomy-XNet and its plain baseline, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from axnet.data import NIH_FINDINGS, PhantomXray
from axnet.models import Preprocessing
from axnet.segment import PRESETS, Segmenter, evaluate_segmenter, fit_segmenter
from axnet.train.anatomy import SEGMENTER_NAME, find_segmenter
from axnet.train.assessment import Assessment, assess
from axnet.train.augment import Augmentation
from axnet.train.fitting import FitConfig, FitResult, fit
from axnet.train.pace import made_up, seconds_per_step
from axnet.train.sources import DataConfig, open_part

ANATOMY_XNET = "AnatomyXNet"
BASELINE = "DenseNet + GAP"
_LEAST_STEPS = 2
# measured on two cores, in steps of both networks: a film shown to the segmenter, one drawn and segmented, one scored
_SEGMENTER, _IMAGE, _SCORED = 0.05, 0.034, 0.019
_DESCRIPTION = (
    "A segmenter is trained, draws lungs and heart on every image, and its masks guide AnatomyXNet. The plain DenseNet "
    "with global average pooling sees the same images for the same number of steps, with the same optimizer. "
    "Patients are the units of the 95 % intervals. Not a medical device."
)


@dataclass(frozen=True)
class DemoConfig:
    """One run of the demo.

    out: folder for everything. data: which radiographs. size: side of the images in pixels. steps: optimizer steps of
    each classifier, batch_size images each; with minutes, as many as make the whole run take that long on this machine,
    which is found out by timing a few. lr: peak learning rate, the same for both. segmenter, organ_root: as
    find_segmenter; with neither, one is trained for segmenter_epochs on segmenter_images phantoms of
    the validation split.
    """

    out: str = "axnet-demo"
    data: DataConfig = field(default_factory=DataConfig)
    size: int = 96
    steps: int = 1600
    minutes: float | None = None
    batch_size: int = 32
    lr: float = 1e-2
    seed: int = 0
    segmenter: str | None = None
    organ_root: str | None = None
    segmenter_images: int = 300
    segmenter_epochs: int = 12
    progress: bool = True


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves: the assessment, the two training runs, and the seconds of each part."""

    assessment: Assessment
    fits: dict[str, FitResult]
    seconds: dict[str, float]


def run_demo(config: DemoConfig, say: Callable[[str], None] = print) -> DemoResult:
    """Run the whole method on one machine: 2 cores suffice.

    say: called with one line per part. Writes report.html, metrics.json, the segmenter and both classifiers to
    config.out. Raises as the parts do.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def part(name: str) -> Iterator[None]:
        say(f"{name} ...")
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    if config.minutes is not None:
        findings = config.data.findings or NIH_FINDINGS  # how many there are is all that the time depends on
        pace = seconds_per_step(_runs(config), made_up(config.size, 2 * config.batch_size, findings))
        say(_first_word(config, pace))
    with part("segmenter"):
        segmenter = _segmenter(config, out)
    preprocessing = Preprocessing(size=config.size)
    with part("images and masks"):
        train = open_part(config.data, "train", preprocessing, segmenter=segmenter)
        test = open_part(config.data, "test", preprocessing, segmenter=segmenter)
    say(f"{len(train)} images to train on, {len(test)} to test on")
    if config.minutes is not None:
        pace = seconds_per_step(_runs(config), train)
        left = 60 * config.minutes - (time.perf_counter() - started) - _evaluation(config) * pace
        config = replace(config, steps=max(_LEAST_STEPS, round(left / pace)))
        say(f"{config.steps} steps of each network, {pace:.2g} s for both: {_minutes(config.steps * pace)} from now")
    fits = {}
    for name, run in zip((ANATOMY_XNET, BASELINE), _runs(config), strict=True):
        with part(name):
            fits[name] = fit(run, train)
    with part("evaluation"):
        assessment = assess(
            {name: (result.model, result.preprocessing) for name, result in fits.items()},
            test,
            out,
            title=f"axnet demo on {config.data.dataset.title}",
            description=_DESCRIPTION,
            run={**asdict(config), "seconds": seconds, "parameters": {n: r.parameters for n, r in fits.items()}},
            segmentation=_segmentation(config, segmenter),
            seed=config.seed,
        )
    return DemoResult(assessment, fits, seconds)


def _runs(config: DemoConfig) -> list[FitConfig]:
    """The training runs of the two classifiers, alike in all but the network."""
    networks: tuple[tuple[Any, dict[str, Any]], ...] = (
        ("anatomy-xnet", {"backbone": "tiny", "fusion": "concat", "reduction": 0.25, "num_maps": "classes"}),
        ("densenet-gap", {"backbone": "tiny"}),
    )
    return [
        FitConfig(
            out=str(Path(config.out) / architecture),
            architecture=architecture,
            options=options,
            max_steps=config.steps,
            batch_size=config.batch_size,
            lr=config.lr,
            ema_decay=0.99,
            augmentation=Augmentation(),
            select="last",
            precise_bn=0,  # there is no validation set to choose by
            seed=config.seed,
            accelerator="cpu",
            progress=config.progress,
            logs=False,
        )
        for architecture, options in networks
    ]


def _first_word(config: DemoConfig, pace: float) -> str:
    """How long the demo will take, from the pace of noise; real films take what they take."""
    minutes = cast(float, config.minutes)
    if config.data.data != "phantom":
        return f"a step of both networks takes {pace:.2g} s; they get what the images leave of {_minutes(60 * minutes)}"
    shown = config.segmenter_images * config.segmenter_epochs
    own = _SEGMENTER * shown if config.segmenter is None and config.organ_root is None else 0
    rest = (own + _IMAGE * (config.data.train_images + config.data.test_images) + _evaluation(config)) * pace
    steps = round((60 * minutes - rest) / pace)
    if steps < _LEAST_STEPS:
        return f"{_minutes(60 * minutes)} is too short here: images and masks alone take {_minutes(rest)}"
    return f"this takes {_minutes(60 * minutes)} on this machine, with about {steps} steps of each network"


def _evaluation(config: DemoConfig) -> float:
    return _SCORED * config.data.test_images


def _minutes(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.1f} minutes"


def _segmenter(config: DemoConfig, out: Path) -> Segmenter | None:
    """The one asked for, none for packed films with masks, else one trained on phantoms that classifiers never see."""
    found = find_segmenter(
        config.data,
        segmenter=config.segmenter,
        organ_root=config.organ_root,
        out=out,
        seed=config.seed,
        progress=config.progress,
    )
    given = config.data.dataset
    if found is not None or (given.masked and given.real):
        return found
    trained = fit_segmenter(
        _organs(config, 0, config.segmenter_images),
        config=PRESETS["tiny"],
        epochs=config.segmenter_epochs,
        seed=config.seed,
        accelerator="cpu",
        progress=config.progress,
    )
    trained.save(out / SEGMENTER_NAME)
    return trained


def _organs(config: DemoConfig, start: int, count: int) -> PhantomXray:
    return PhantomXray(count, seed=config.seed, size=config.size, split="val", start=start)


def _segmentation(config: DemoConfig, segmenter: Segmenter | None) -> dict[str, Any] | None:
    """Dice of each organ on further phantoms; None for real data, where the masks are not known."""
    if segmenter is None or config.data.dataset.real:
        return None
    return evaluate_segmenter(segmenter, _organs(config, config.segmenter_images // 6 * 6 + 6, 60))
