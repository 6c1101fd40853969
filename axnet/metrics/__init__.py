"""Measures of multi-label classification with their uncertainty: AUC, intervals, calibration, operating points,
localisation, experts against a curve.

Everything takes array-likes and returns numpy arrays or floats. Labels are 0, 1, or NaN for unknown; an unknown label
leaves that image out of that class.
"""

from axnet.metrics.auc import mean_auc, roc_auc
from axnet.metrics.calibration import brier, calibration_error, sensitivity_at_specificity
from axnet.metrics.delong import delong_test
from axnet.metrics.ensemble import ensemble
from axnet.metrics.evaluation import ClassEvaluation, Evaluation, evaluate
from axnet.metrics.experts import expert_points, rads_below_curve
from axnet.metrics.interval import Interval, auc_difference, auc_interval, mean_auc_interval
from axnet.metrics.label_quality import LabelQuality, label_quality
from axnet.metrics.localisation import Localisation, localisation
from axnet.metrics.operating import OperatingPoint, fit_temperature, operating_points
from axnet.metrics.subgroups import Subgroup, age_band, subgroups

__all__ = [
    "ClassEvaluation",
    "Evaluation",
    "Interval",
    "LabelQuality",
    "Localisation",
    "OperatingPoint",
    "Subgroup",
    "age_band",
    "auc_difference",
    "auc_interval",
    "brier",
    "calibration_error",
    "delong_test",
    "ensemble",
    "evaluate",
    "expert_points",
    "fit_temperature",
    "label_quality",
    "localisation",
    "mean_auc",
    "mean_auc_interval",
    "operating_points",
    "rads_below_curve",
    "roc_auc",
    "sensitivity_at_specificity",
    "subgroups",
]
