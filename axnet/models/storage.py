"""Classifiers in files: weights, architecture, preprocessing and a fingerprint that is verified on load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from axnet import checkpoint
from axnet.models.backbone import StrPath
from axnet.models.classifier import CUSTOM, AnatomyXNet, DenseNetGAP
from axnet.models.preprocessing import Preprocessing

KIND = "classifier"
ARCHITECTURES: dict[str, type[nn.Module]] = {"anatomy-xnet": AnatomyXNet, "densenet-gap": DenseNetGAP}
"""Classifiers that fit, save_classifier and load_classifier know by name."""


@dataclass(frozen=True)
class ClassifierInfo:
    """What a checkpoint says of its classifier.

    architecture: a name in ARCHITECTURES; config: the arguments of its class; classes: findings, in the order of the
    logits; preprocessing: of the input images; training: how it was trained, for the record.
    """

    architecture: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    training: dict[str, Any]


def build_classifier(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """Make a classifier by its name in ARCHITECTURES and the arguments of its class.

    Raises ValueError for another name, or for an argument that the class does not have.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture is {architecture!r}, expected one of {tuple(ARCHITECTURES)}.")
    try:
        return ARCHITECTURES[architecture](**config)
    except TypeError as error:
        raise ValueError(f"config {sorted(config)} does not fit architecture '{architecture}': {error}.") from error


def save_classifier(
    path: StrPath,
    model: nn.Module,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a classifier so that load_classifier makes the same one again.

    path: a .safetensors file; it is replaced in one step, so that a failed write leaves the old one. model: an
    AnatomyXNet or a DenseNetGAP; training: plain values kept for the record.
    Raises ValueError for another module, or when classes are not one per logit.
    """
    architecture = next((name for name, kind in ARCHITECTURES.items() if type(model) is kind), None)
    if architecture is None:
        raise ValueError(f"model is {type(model).__name__}, expected AnatomyXNet or DenseNetGAP.")
    config: dict[str, Any] = dict(model.config)  # type: ignore[arg-type]
    if len(classes) != config["num_classes"]:
        raise ValueError(f"classes has {len(classes)} names, the model has {config['num_classes']} logits.")
    metadata = {
        "kind": KIND,
        "architecture": architecture,
        "config": config,
        "classes": list(classes),
        "preprocessing": preprocessing.to_dict(),
        "training": dict(training or {}),
        "fingerprint": checkpoint.fingerprint(_answer(model), _input_shapes(config, preprocessing)),
    }
    checkpoint.save(path, model.state_dict(), metadata)


def load_classifier(path: StrPath, *, backbone: nn.Module | None = None) -> tuple[nn.Module, ClassifierInfo]:
    """Read a classifier, and verify that it computes what it computed when it was saved.

    backbone: the module to fill, for a classifier that was built on a module of the caller's.
    Returns the model in eval mode on the CPU, and what the checkpoint says of it.
    Raises FileNotFoundError, and ValueError for a damaged file, one of another kind or architecture, or other outputs.
    """
    state, metadata = checkpoint.load(path, KIND)
    info = ClassifierInfo(
        architecture=metadata["architecture"],
        config=metadata["config"],
        classes=tuple(metadata["classes"]),
        preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
        training=metadata["training"],
    )
    config = dict(info.config)
    if config["backbone"] == CUSTOM:
        if backbone is None:
            raise ValueError(f"checkpoint '{path}' was built on a custom backbone, expected it as backbone=.")
        config["backbone"] = backbone
    elif backbone is not None:
        raise ValueError(f"checkpoint '{path}' has backbone '{config['backbone']}', expected no backbone=.")
    model = build_classifier(info.architecture, config)
    _load_state(model, state, path)
    checkpoint.verify_fingerprint(_answer(model), metadata["fingerprint"], path)
    return model.eval(), info


def _answer(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """What the fingerprint records: the logits in eval mode, on the model's device."""

    def run(image: Tensor, mask: Tensor) -> Tensor:
        device, was_training = next(model.parameters()).device, model.training
        model.eval()
        try:
            logits: Tensor = model(image.to(device), mask.to(device)).logits
        finally:
            model.train(was_training)
        return logits

    return run


def _input_shapes(config: Mapping[str, Any], preprocessing: Preprocessing) -> list[tuple[int, ...]]:
    side = (preprocessing.size, preprocessing.size)
    return [(1, 1, *side), (1, config.get("num_anatomies", 1), *side)]


def _load_state(model: nn.Module, state: dict[str, Tensor], path: StrPath) -> None:
    wanted = model.state_dict()
    problems = [f"'{name}' is missing" for name in wanted if name not in state]
    problems += [f"'{name}' is left over" for name in state if name not in wanted]
    problems += [
        f"'{name}' has shape {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"checkpoint '{path}' has other weights than its architecture: {problems[0]}.")
    model.load_state_dict(state)
