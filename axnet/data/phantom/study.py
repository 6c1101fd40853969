"""Who is imaged, when and with what: patients, follow-ups, views and findings, drawn without rendering a pixel.

Findings follow a Gaussian copula. Their marginals are those of ChestX-ray14, tempered so that rare findings are met in
a few hundred images; the correlations below were set by hand after the co-occurrence counts of that data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from axnet.data.findings import NIH_FINDINGS

NIH_COUNTS = (11559, 2776, 13317, 19894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227)
"""Images with each finding among the 112,120 of ChestX-ray14, in the order of NIH_FINDINGS."""
NIH_IMAGES = 112_120
PREVALENCE = 1.5
AP_FRACTION = 0.4

_PATIENT_BLOCK = 6
_STREAM_PATIENT, _STREAM_STUDY, _STREAM_BLOCK = 1, 2, 3
_PATIENT_SHARE = 0.5  # of the variance of the latent variables: follow-ups resemble each other

_CORRELATIONS = {
    ("Atelectasis", "Effusion"): 0.42,
    ("Atelectasis", "Infiltration"): 0.25,
    ("Atelectasis", "Consolidation"): 0.3,
    ("Atelectasis", "Pneumothorax"): 0.15,
    ("Cardiomegaly", "Effusion"): 0.38,
    ("Cardiomegaly", "Edema"): 0.25,
    ("Effusion", "Infiltration"): 0.3,
    ("Effusion", "Consolidation"): 0.3,
    ("Effusion", "Edema"): 0.25,
    ("Effusion", "Pneumothorax"): 0.15,
    ("Effusion", "Pleural_Thickening"): 0.22,
    ("Infiltration", "Edema"): 0.35,
    ("Infiltration", "Pneumonia"): 0.3,
    ("Infiltration", "Consolidation"): 0.15,
    ("Edema", "Pneumonia"): 0.5,
    ("Edema", "Consolidation"): 0.2,
    ("Pneumonia", "Consolidation"): 0.15,
    ("Mass", "Nodule"): 0.35,
    ("Mass", "Consolidation"): 0.25,
    ("Pneumothorax", "Emphysema"): 0.48,
    ("Fibrosis", "Pleural_Thickening"): 0.28,
    ("Fibrosis", "Nodule"): 0.12,
    ("Atelectasis", "AP"): 0.15,
    ("Cardiomegaly", "AP"): 0.1,
    ("Effusion", "AP"): 0.25,
    ("Infiltration", "AP"): 0.25,
    ("Pneumonia", "AP"): 0.25,
    ("Pneumothorax", "AP"): 0.1,
    ("Consolidation", "AP"): 0.35,
    ("Edema", "AP"): 0.55,
    ("Fibrosis", "AP"): -0.2,
    ("Hernia", "AP"): -0.15,
}


@dataclass(frozen=True)
class Study:
    """One radiograph before it is drawn: label is bool [14] in the order of NIH_FINDINGS, age in years."""

    index: int
    seed: int
    patient: int
    follow_up: int
    age: int
    sex: str
    view: str
    label: npt.NDArray[np.bool_]

    @property
    def name(self) -> str:
        """File name in the manner of ChestX-ray14: patient, then follow-up."""
        return f"{self.patient:08d}_{self.follow_up:03d}.png"

    def has(self, finding: str) -> bool:
        """Whether the radiograph shows a finding."""
        return bool(self.label[NIH_FINDINGS.index(finding)])

    def patient_rng(self) -> np.random.Generator:
        """Generator of all that follow-ups share: habitus."""
        return _rng(self.seed, _STREAM_PATIENT, self.patient, 1)

    def study_rng(self, part: int) -> np.random.Generator:
        """Generator of one part of this radiograph: parts do not disturb each other."""
        return _rng(self.seed, _STREAM_STUDY, self.index, part)


def study(index: int, *, seed: int = 0, prevalence: float = PREVALENCE) -> Study:
    """Draw the study of an index: the same for the same arguments, in any order and in any process.

    index, seed: not negative; consecutive indices share a patient, one to six images each.
    prevalence: exponent 1/prevalence tempers the NIH marginals p: 1 keeps them (0.2 % hernia, 18 % infiltration), the
        default 1.5 gives 1.6 % and 32 %. Raises ValueError below 1.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed are {index} and {seed}, expected numbers that are not negative.")
    if not prevalence >= 1:
        raise ValueError(f"prevalence is {prevalence}, expected 1 (as in NIH) or more.")
    block, place = divmod(index, _PATIENT_BLOCK)
    starts = _patient_starts(seed, block)
    start = max(s for s in starts if s <= place)
    patient = block * _PATIENT_BLOCK + start

    patient_rng = _rng(seed, _STREAM_PATIENT, patient, 0)
    age = int(np.clip(patient_rng.normal(50, 17), 18, 92))
    sex = "M" if patient_rng.random() < 0.56 else "F"
    shared = patient_rng.standard_normal(len(NIH_FINDINGS) + 1)
    own = _rng(seed, _STREAM_STUDY, index, 0).standard_normal(len(NIH_FINDINGS) + 1)
    mixed = np.sqrt(_PATIENT_SHARE) * shared + np.sqrt(1 - _PATIENT_SHARE) * own
    latent = _correlation_root() @ mixed
    positive = latent > _thresholds(prevalence)
    return Study(
        index=index,
        seed=seed,
        patient=patient,
        follow_up=place - start,
        age=min(age + (place - start) // 2, 95),
        sex=sex,
        view="AP" if positive[-1] else "PA",
        label=positive[:-1],
    )


def marginals(prevalence: float = PREVALENCE) -> npt.NDArray[np.float64]:
    """Probability of each finding, float64 [14]: the NIH frequency to the power 1/prevalence."""
    return np.array([(count / NIH_IMAGES) ** (1 / prevalence) for count in NIH_COUNTS])


def _rng(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


@lru_cache(maxsize=4096)
def _patient_starts(seed: int, block: int) -> tuple[int, ...]:
    cuts = _rng(seed, _STREAM_BLOCK, block).random(_PATIENT_BLOCK) < 0.45
    return tuple(k for k in range(_PATIENT_BLOCK) if k == 0 or cuts[k])


@lru_cache(maxsize=64)
def _thresholds(prevalence: float) -> npt.NDArray[np.float64]:
    normal = NormalDist()
    return np.array([-normal.inv_cdf(p) for p in (*marginals(prevalence), AP_FRACTION)])


@lru_cache(maxsize=1)
def _correlation_root() -> npt.NDArray[np.float64]:
    names = (*NIH_FINDINGS, "AP")
    matrix = np.eye(len(names))
    for (a, b), value in _CORRELATIONS.items():
        i, j = names.index(a), names.index(b)
        matrix[i, j] = matrix[j, i] = value
    return np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)
