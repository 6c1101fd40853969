"""The runs of the comparison, in order of priority: each is a model, a recipe and a seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

ROWS = {
    1: "DenseNet-121 + GAP, from scratch",
    2: "EfficientNet-Lite0 + GAP",
    3: "EfficientNet-Lite0 + PCAM",
    4: "EfficientNet-Lite0 + PWAP",
    5: "EfficientNet-Lite0 + A3",
    6: "AnatomyXNet",
    7: "AnatomyXNet, whole-image masks",
    8: "AnatomyXNet, another patient's masks",
}
LITE = "efficientnet_lite0"
SEEDS = (0, 1, 2)
RATES = (5e-4, 1e-3, 2e-3)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, one-cycle, bfloat16 on a GPU.

    size: side to which the 128-pixel films are resized on their way into the network. gate_lr: of A3's gates, as a
    multiple of lr. augmentation: "none", "default" (axnet's), "half" (of the films are
    moved) or "strong". part: of the films, see Films.parts.
    """

    epochs: int = 8
    batch: int = 64
    lr: float = 1e-3
    gate_lr: float = 1.0
    weight_decay: float = 1e-2
    ema: float | None = 0.99
    smoothing: float = 0.0
    augmentation: str = "default"
    size: int | None = None
    part: str = "train"


@dataclass(frozen=True)
class Job:
    """A run.

    model: "gap", "pcam", "pwap", "a3", "axnet" or "channels" (GAP on image and masks as channels); options: of its
    class. masks: "own", "whole" or "other". rates: names of runs out of which the one that validates best gives lr.
    weights: whether the trained weights are kept.
    """

    name: str
    model: str = "gap"
    options: dict[str, Any] = field(default_factory=dict)
    backbone: str = LITE
    pretrained: bool = True
    masks: str = "own"
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    rates: tuple[str, ...] = ()
    weights: bool = False

    def cost(self, films: int = 5650) -> float:
        """About how many passes of EfficientNet-Lite0 at 128 px a film, in thousands."""
        scale = ((self.recipe.size or 128) / 128) ** 2
        heavy = {"densenet121": 4.0}.get(self.backbone, 1.0) * {"axnet": 1.3}.get(self.model, 1.0)
        return films * self.recipe.epochs * scale * heavy / 1000

    def record(self) -> dict[str, Any]:
        return asdict(self)


def _grid(row: int, model: str) -> list[Job]:
    return [Job(f"row{row}-lr{rate:g}-s0", model, recipe=Recipe(lr=rate)) for rate in RATES]


def jobs() -> list[Job]:
    """All runs, the most wanted first; the rest is for the time that is left."""
    gap, full = _grid(2, "gap"), _grid(6, "axnet")
    gap_rates, full_rates = tuple(job.name for job in gap), tuple(job.name for job in full)
    scratch = Job("row1-lr0.001-s0", backbone="densenet121", pretrained=False)
    kinds = {
        2: Job("", rates=gap_rates),
        3: Job("", "pcam", rates=gap_rates),
        4: Job("", "pwap", rates=gap_rates),
        5: Job("", "a3", rates=gap_rates),
        6: Job("", "axnet", rates=full_rates),
        7: Job("", "axnet", masks="whole", rates=full_rates),
        8: Job("", "axnet", masks="other", rates=full_rates),
    }
    rows = [
        replace(job, name=f"row{row}-s{seed}", seed=seed)
        for seed in SEEDS
        for row, job in kinds.items()
        if seed > 0 or row not in (2, 6)  # the grid has those
    ]
    later = [replace(scratch, name=f"row1-lr0.001-s{seed}", seed=seed) for seed in SEEDS[1:]]
    best, more = candidates()
    varied = variations(gap_rates, full_rates)
    return [*gap, *full, *best, scratch, *rows, *varied[:5], *later, *varied[5:], *more]


def short() -> list[Job]:
    """The plan for a CPU: half the epochs, one learning rate for all, row 1 of the small backbone; by seeds."""
    recipe = Recipe(epochs=4)
    scratch = Job("", backbone="tiny", pretrained=False)
    kinds = {
        2: Job(""),
        6: Job("", "axnet"),
        3: Job("", "pcam"),
        4: Job("", "pwap"),
        5: Job("", "a3"),
        7: Job("", "axnet", masks="whole"),
        8: Job("", "axnet", masks="other"),
        1: scratch,
    }
    rows = [
        replace(job, name=f"row{row}-s{seed}", seed=seed, recipe=recipe) for seed in SEEDS for row, job in kinds.items()
    ]
    varied = [
        replace(job, rates=(), recipe=replace(job.recipe, epochs=recipe.epochs))
        for job in variations((), ())
        if job.recipe.epochs == Recipe().epochs and job.recipe.size is None
    ]
    return [*rows[:16], *varied[:5], *rows[16:], *varied[5:]]


def candidates() -> tuple[list[Job], list[Job]]:
    """Of the shipped model: those that are run early, and those that are run late."""
    recipe = Recipe(epochs=12, size=192, part="both", ema=0.995)
    slim = {"reduction": 1 / 16, "num_maps": "classes", "head_dropout": 0.2}
    plain = {"head_dropout": 0.2}
    early = [
        job
        for seed in SEEDS[:2]
        for job in (
            Job(f"candidate-gap192-s{seed}", "gap", plain, recipe=recipe, seed=seed, weights=True),
            Job(f"candidate-axnet192-s{seed}", "axnet", slim, recipe=recipe, seed=seed, weights=True),
        )
    ]
    long = replace(recipe, epochs=20, augmentation="strong")
    return early, [Job("candidate-gap192-long-s0", "gap", plain, recipe=long, weights=True)]


def variations(gap: tuple[str, ...], full: tuple[str, ...]) -> list[Job]:
    """Why the anatomy pays or not, and choices of the recipe; seed 0, judged by validation."""
    r = Recipe()
    of_gap: dict[str, Any] = {
        "channels": Job("", "channels", rates=gap),
        "size192": Job("", rates=gap, recipe=replace(r, size=192)),
        "strong": Job("", rates=gap, recipe=replace(r, augmentation="strong")),
        "epochs16": Job("", rates=gap, recipe=replace(r, epochs=16)),
        "epochs4": Job("", rates=gap, recipe=replace(r, epochs=4)),
        "half": Job("", rates=gap, recipe=replace(r, augmentation="half")),
        "noema": Job("", rates=gap, recipe=replace(r, ema=None)),
        "smoothing": Job("", rates=gap, recipe=replace(r, smoothing=0.05)),
        "noaug": Job("", rates=gap, recipe=replace(r, augmentation="none")),
        "scratch": Job("", rates=gap, pretrained=False),
        "headdropout": Job("", options={"head_dropout": 0.3}, rates=gap),
        "batch128": Job("", rates=gap, recipe=replace(r, batch=128)),
    }
    of_full: dict[str, Any] = {
        "size192": Job("", "axnet", rates=full, recipe=replace(r, size=192)),
        "gatelr0.1": Job("", "axnet", rates=full, recipe=replace(r, gate_lr=0.1)),
        "slim": Job("", "axnet", {"reduction": 1 / 16}, rates=full),
        "stage32": Job("", "axnet", {"stages": [32]}, rates=full),
        "stage16": Job("", "axnet", {"stages": [16]}, rates=full),
        "stages8": Job("", "axnet", {"stages": [8, 16, 32]}, rates=full),
        "dropout0": Job("", "axnet", {"dropout": 0.0}, rates=full),
        "concat": Job("", "axnet", {"fusion": "concat", "reduction": 1 / 4}, rates=full),
        "classmaps": Job("", "axnet", {"num_maps": "classes"}, rates=full),
    }
    pairs = [("gap", name, job) for name, job in of_gap.items()]
    pairs += [("axnet", name, job) for name, job in of_full.items()]
    first = ("channels", "slim", "gatelr0.1", "stage32", "half", "dropout0", "size192", "concat", "strong")
    pairs.sort(key=lambda pair: first.index(pair[1]) if pair[1] in first else len(first))
    return [replace(job, name=f"variation-{kind}-{name}") for kind, name, job in pairs]


def quick() -> list[Job]:
    """One run of a few films of every kind, to see that all of it works."""
    chosen = {}
    for job in jobs():
        key = (job.model, job.masks, job.backbone, job.recipe.size, job.recipe.part, job.weights, bool(job.rates))
        chosen.setdefault(key, job)
    wanted = {name for job in chosen.values() for name in job.rates}
    kept = [job for job in jobs() if job in chosen.values() or job.name in wanted]
    small = [replace(job, recipe=replace(job.recipe, epochs=1, batch=8)) for job in kept]
    return [replace(job, backbone="tiny" if job.backbone == "densenet121" else job.backbone) for job in small]


PLANS = {"full": jobs, "short": short, "quick": quick}
