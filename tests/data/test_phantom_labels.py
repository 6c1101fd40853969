from __future__ import annotations

import numpy as np
import pytest

from axnet.data import NIH_FINDINGS
from axnet.data.phantom import marginals, study

N = 12_000


@pytest.fixture(scope="module")
def studies() -> list:
    return [study(index, seed=2) for index in range(N)]


@pytest.fixture(scope="module")
def labels(studies: list) -> np.ndarray:
    return np.array([s.label for s in studies])


def test_marginals_are_tempered_nih_frequencies(labels: np.ndarray) -> None:
    expected = marginals()
    # Follow-ups are correlated, which widens the spread over the binomial's: five of its deviations, not two.
    assert (np.abs(labels.mean(0) - expected) < 5 * np.sqrt(expected * (1 - expected) / N)).all()
    assert marginals(1.0)[NIH_FINDINGS.index("Hernia")] == pytest.approx(227 / 112_120)
    assert (marginals(2.0) > marginals()).all()


def test_every_class_is_met_in_a_few_hundred_images(labels: np.ndarray) -> None:
    assert labels[:600].any(0).all()


def lift(labels: np.ndarray, a: str, b: str) -> float:
    x, y = labels[:, NIH_FINDINGS.index(a)], labels[:, NIH_FINDINGS.index(b)]
    return float((x & y).mean() / (x.mean() * y.mean()))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Infiltration", "Effusion"),
        ("Effusion", "Atelectasis"),
        ("Edema", "Pneumonia"),
        ("Edema", "Infiltration"),
        ("Effusion", "Cardiomegaly"),
        ("Pneumothorax", "Emphysema"),
        ("Mass", "Nodule"),
    ],
)
def test_findings_co_occur(labels: np.ndarray, a: str, b: str) -> None:
    assert lift(labels, a, b) > 1.2


def test_unrelated_findings_are_independent(labels: np.ndarray) -> None:
    assert 0.85 < lift(labels, "Mass", "Cardiomegaly") < 1.15
    assert 0.85 < lift(labels, "Nodule", "Pneumothorax") < 1.15


def test_sick_patients_are_imaged_ap(studies: list, labels: np.ndarray) -> None:
    ap = np.array([s.view == "AP" for s in studies])
    assert 0.35 < ap.mean() < 0.45
    edema = labels[:, NIH_FINDINGS.index("Edema")]
    assert ap[edema].mean() > ap[~edema].mean() + 0.2


def test_patients_have_follow_ups_that_resemble_each_other(studies: list, labels: np.ndarray) -> None:
    patients = np.array([s.patient for s in studies])
    _, counts = np.unique(patients, return_counts=True)
    assert counts.max() <= 6
    assert counts.min() == 1
    assert 1.3 < counts.mean() < 3
    assert len({s.name for s in studies}) == N
    for s in studies[:200]:
        assert s.index == s.patient + s.follow_up
    same = patients[1:] == patients[:-1]
    agree = (labels[1:] == labels[:-1]).mean(1)
    assert agree[same].mean() > agree[~same].mean() + 0.03
    sexes = {s.patient: s.sex for s in studies}
    assert all(sexes[s.patient] == s.sex for s in studies)


def test_study_has() -> None:
    s = next(s for s in map(study, range(100)) if s.label.any())
    positive = [finding for finding in NIH_FINDINGS if s.has(finding)]
    assert positive == [finding for finding, on in zip(NIH_FINDINGS, s.label, strict=True) if on]
