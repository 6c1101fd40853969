"""Several models as one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from axnet.metrics import ensemble, roc_auc

RNG = np.random.default_rng(0)
THREE = RNG.random((3, 40, 2))


def test_means_are_what_their_names_say() -> None:
    np.testing.assert_allclose(ensemble(THREE, "probabilities"), THREE.mean(0))
    np.testing.assert_allclose(ensemble(THREE, "logits"), expit(logit(THREE).mean(0)))
    one = np.array([[[0.3], [0.1], [0.3], [0.9]]])
    np.testing.assert_allclose(ensemble(one, "ranks")[:, 0], [0.5, 0.125, 0.5, 0.875])  # ties share their rank


def test_ranks_need_no_probabilities_and_no_common_scale() -> None:
    y = (RNG.random(40) < 0.5).astype(float)
    scaled = THREE[:2].copy()
    scaled[1] = 1e6 * scaled[1] - 5
    np.testing.assert_allclose(ensemble(scaled, "ranks"), ensemble(THREE[:2], "ranks"))
    assert roc_auc(y, ensemble(THREE[:1], "ranks")[:, 0]) == roc_auc(y, THREE[0, :, 0])


def test_saturated_probabilities_have_a_finite_mean() -> None:
    found = ensemble([[[0.0]], [[1.0]]], "logits")
    assert found[0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("scores", "mean", "message"),
    [
        (THREE, "median", "mean is 'median', expected one of"),
        (THREE[0], "logits", r"scores has shape \[40, 2\], expected 3 dimensions"),
        (2 * THREE, "logits", r"scores holds 1\.\d+, expected probabilities in \[0, 1\] for mean 'logits'"),
        (THREE * np.nan, "ranks", "scores holds nan, expected finite numbers"),
    ],
)
def test_errors_name_the_argument(scores: np.ndarray, mean: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ensemble(scores, mean)  # type: ignore[arg-type]
