"""One phantom radiograph from an index and a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from axnet.data.cardiothoracic import cardiothoracic_ratio
from axnet.data.findings import Box
from axnet.data.phantom.acquisition import expose
from axnet.data.phantom.anatomy import Chest, sample_anatomy
from axnet.data.phantom.canvas import Mask
from axnet.data.phantom.distractors import draw_distractors
from axnet.data.phantom.pathology import draw_findings
from axnet.data.phantom.scene import Scene
from axnet.data.phantom.study import PREVALENCE, Study, study
from axnet.data.phantom.tissue import bones, gastric_bubble, lung_air, mediastinum, soft_tissue, vessels

_PART_TISSUE, _PART_DISTRACTORS, _PART_EXPOSURE, _PART_NOISE = 2, 3, 4, 5
_MIN_SIZE = 32


@dataclass(frozen=True)
class PhantomSample:
    """A rendered phantom.

    image: uint8 [H,W], dense tissue bright; masks: bool [3,H,W] in the order of ORGANS (left lung = the patient's left
    = the image's right); label: bool [14] in the order of NIH_FINDINGS; boxes: of the findings, in pixels of image;
    view: "PA" or "AP"; age in years; sex: "M" or "F"; patient: number shared by follow-ups; follow_up: from 0;
    name: file name in the manner of ChestX-ray14; ctr: width of the heart mask over that of the lungs.
    """

    image: npt.NDArray[np.uint8]
    masks: Mask
    label: npt.NDArray[np.bool_]
    boxes: list[Box]
    view: str
    age: int
    sex: str
    patient: int
    follow_up: int
    name: str
    ctr: float


def render(index: int, *, seed: int = 0, size: int = 128, prevalence: float = PREVALENCE) -> PhantomSample:
    """Draw the phantom radiograph of an index.

    The same arguments give the same bits on the same machine, in any order and any process. Another size gives the
    same chest with other noise. index, seed: not negative; size: side in pixels, 32 or more; prevalence: see study.
    """
    return render_study(study(index, seed=seed, prevalence=prevalence), size)


def render_study(study: Study, size: int) -> PhantomSample:
    """Draw a study, for instance one whose label was set by hand (dataclasses.replace).

    size: side in pixels. Raises ValueError below 32.
    """
    if size < _MIN_SIZE:
        raise ValueError(f"size is {size}, expected {_MIN_SIZE} pixels or more.")
    chest = Chest(sample_anatomy(study), size)
    scene = Scene(chest, study)
    rng = study.study_rng(_PART_TISSUE)
    soft = soft_tissue(chest, study, rng)
    middle = mediastinum(chest, rng) + gastric_bubble(chest, rng)
    skeleton = bones(chest, rng)
    tree = vessels(chest, rng)
    draw_findings(scene)
    draw_distractors(scene, study.study_rng(_PART_DISTRACTORS))
    total = scene.attenuation(soft, skeleton, lung_air(chest), tree, middle)
    image = expose(total, chest, study, study.study_rng(_PART_EXPOSURE), study.study_rng(_PART_NOISE))
    return PhantomSample(
        image=image,
        masks=chest.masks,
        label=study.label,
        boxes=scene.boxes,
        view=study.view,
        age=study.age,
        sex=study.sex,
        patient=study.patient,
        follow_up=study.follow_up,
        name=study.name,
        ctr=cardiothoracic_ratio(chest.masks),
    )
