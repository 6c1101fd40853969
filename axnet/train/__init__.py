"""Training: data held as 8-bit tensors, augmentation, losses, and a Lightning loop around any classifier."""

from axnet.train.anatomy import find_segmenter, optional_segmenter, segmenter_for
from axnet.train.assessment import Assessment, assess, table
from axnet.train.augment import Augmentation
from axnet.train.data import XraySet, collect, measured, with_blank_masks, with_predicted_masks
from axnet.train.demo import DemoConfig, DemoResult, run_demo
from axnet.train.fitting import FitConfig, FitResult, fit
from axnet.train.losses import focal_loss, positive_weights
from axnet.train.module import ClassifierModule, MeanAUROC, XrayDataModule
from axnet.train.scoring import predict
from axnet.train.sources import DataConfig, open_part, read_images

__all__ = [
    "Assessment",
    "Augmentation",
    "ClassifierModule",
    "DataConfig",
    "DemoConfig",
    "DemoResult",
    "FitConfig",
    "FitResult",
    "MeanAUROC",
    "XrayDataModule",
    "XraySet",
    "assess",
    "collect",
    "find_segmenter",
    "fit",
    "focal_loss",
    "measured",
    "open_part",
    "optional_segmenter",
    "positive_weights",
    "predict",
    "read_images",
    "run_demo",
    "segmenter_for",
    "table",
    "with_blank_masks",
    "with_predicted_masks",
]
