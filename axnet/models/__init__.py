"""Classifiers: AnatomyXNet and the plain DenseNet, on any backbone that returns feature maps."""

from axnet.models.backbone import Backbone, DenseNetBackbone
from axnet.models.classifier import AnatomyXNet, DenseNetGAP, Output
from axnet.models.preprocessing import Preprocessing
from axnet.models.presets import BACKBONES, build_backbone, densenet121, tiny
from axnet.models.pretrained import load_torchvision_densenet
from axnet.models.staged import StagedBackbone, TimmBackbone
from axnet.models.storage import ARCHITECTURES, ClassifierInfo, build_classifier, load_classifier, save_classifier

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "AnatomyXNet",
    "Backbone",
    "ClassifierInfo",
    "DenseNetBackbone",
    "DenseNetGAP",
    "Output",
    "Preprocessing",
    "StagedBackbone",
    "TimmBackbone",
    "build_backbone",
    "build_classifier",
    "densenet121",
    "load_classifier",
    "load_torchvision_densenet",
    "save_classifier",
    "tiny",
]
