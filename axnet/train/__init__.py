"""Training: data held as 8-bit tensors, augmentation, losses, and a Lightning loop around any classifier."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from axnet.train.anatomy import find_segmenter, optional_segmenter, segmenter_for
from axnet.train.augment import Augmentation
from axnet.train.data import XraySet, collect, measured, with_blank_masks, with_predicted_masks
from axnet.train.losses import asymmetric_loss, auc_margin_loss, focal_loss, positive_weights
from axnet.train.scoring import predict
from axnet.train.sources import DataConfig, open_part, prepared, read_images
from axnet.train.views import Views

if TYPE_CHECKING:
    from axnet.train.assessment import Assessment, assess, table
    from axnet.train.calibrating import calibrate
    from axnet.train.demo import DemoConfig, DemoResult, run_demo
    from axnet.train.facts import Facts
    from axnet.train.fitting import FitConfig, FitResult, fit
    from axnet.train.module import ClassifierModule, MeanAUROC, XrayDataModule

# with these come Lightning or matplotlib and scikit-learn, which prediction does not need
_ON_FIRST_USE = {
    "Assessment": "assessment",
    "ClassifierModule": "module",
    "DemoConfig": "demo",
    "Facts": "facts",
    "DemoResult": "demo",
    "FitConfig": "fitting",
    "FitResult": "fitting",
    "MeanAUROC": "module",
    "XrayDataModule": "module",
    "assess": "assessment",
    "calibrate": "calibrating",
    "fit": "fitting",
    "run_demo": "demo",
    "table": "assessment",
}

__all__ = [
    "Assessment",
    "Augmentation",
    "ClassifierModule",
    "DataConfig",
    "DemoConfig",
    "DemoResult",
    "Facts",
    "FitConfig",
    "FitResult",
    "MeanAUROC",
    "Views",
    "XrayDataModule",
    "XraySet",
    "assess",
    "asymmetric_loss",
    "auc_margin_loss",
    "calibrate",
    "collect",
    "find_segmenter",
    "fit",
    "focal_loss",
    "measured",
    "open_part",
    "optional_segmenter",
    "positive_weights",
    "predict",
    "prepared",
    "read_images",
    "run_demo",
    "segmenter_for",
    "table",
    "with_blank_masks",
    "with_predicted_masks",
]


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(import_module(f"axnet.train.{_ON_FIRST_USE[name]}"), name)
    raise AttributeError(f"module 'axnet.train' has no attribute {name!r}")
