"""Classifiers: AnatomyXNet and the plain DenseNet, on any backbone that returns feature maps."""

from importlib import import_module
from typing import Any

from axnet.models.backbone import Backbone, DenseNetBackbone
from axnet.models.calibration import Calibration
from axnet.models.classifier import AnatomyXNet, DenseNetGAP, Output
from axnet.models.preprocessing import Preprocessing
from axnet.models.presets import BACKBONES, build_backbone, densenet121, tiny
from axnet.models.pretrained import load_torchvision_densenet
from axnet.models.staged import StagedBackbone, TimmBackbone
from axnet.models.storage import (
    ARCHITECTURES,
    ClassifierInfo,
    build_classifier,
    load_classifier,
    save_classifier,
    store_calibration,
)

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "AnatomyXNet",
    "Backbone",
    "Calibration",
    "ClassifierInfo",
    "DenseNetBackbone",
    "DenseNetGAP",
    "Output",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "StagedBackbone",
    "TimmBackbone",
    "build_backbone",
    "build_classifier",
    "densenet121",
    "load_classifier",
    "load_pretrained",
    "load_torchvision_densenet",
    "save_classifier",
    "store_calibration",
    "tiny",
]

_READING = ("Prediction", "Predictor", "load_pretrained")


def __getattr__(name: str) -> Any:
    if name in _READING:  # they stand on the segmenter, which stands on the models
        return getattr(import_module("axnet.predictor"), name)
    raise AttributeError(f"module 'axnet.models' has no attribute {name!r}")
