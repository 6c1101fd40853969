"""Classifiers in files: weights, architecture, preprocessing and a fingerprint that is verified on load."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from axnet import checkpoint
from axnet.models.calibration import Calibration
from axnet.models.classifier import CUSTOM, AnatomyXNet, DenseNetGAP
from axnet.models.names import as_named_here
from axnet.models.preprocessing import Preprocessing
from axnet.paths import StrPath

SHIPPED = Path(__file__).parent / "weights"
"""The folder of the classifiers that come with axnet; the model cards stand beside them."""

KIND = "classifier"
ARCHITECTURES: dict[str, type[nn.Module]] = {"anatomy-xnet": AnatomyXNet, "densenet-gap": DenseNetGAP}
"""Classifiers that fit, save_classifier and load_classifier know by name."""

_PARAMETRIZED = re.compile(r"(?:parametrizations\.(\w+)\..*|(?<=\.)(\w+)_(?:orig|mask|g|v|u))$")


@dataclass(frozen=True)
class ClassifierInfo:
    """What a checkpoint says of its classifier.

    architecture: a name in ARCHITECTURES; config: the arguments of its class; classes: findings, in the order of the
    logits; preprocessing: of the input images; training: how it was trained, for the record; calibration: how its
    logits become probabilities and calls, None where nobody chose that.
    """

    architecture: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    training: dict[str, Any]
    calibration: Calibration | None = None


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
    calibration: Calibration | None = None,
) -> None:
    """Write a classifier so that load_classifier makes the same one again: it is made again before anything is written.

    path: a .safetensors file; it is replaced in one step, so that a failed write leaves the old one. model: an
    AnatomyXNet or a DenseNetGAP, on any device and of any floating type, which the file keeps, or one wrapped by
    DataParallel or torch.compile; another linear layer may have taken the place of its classifier, and parametrised
    weights (torch.nn.utils.parametrize, pruning) are stored as what they come to. training: plain values kept for the
    record. calibration: of its logits, in the order of classes.
    Raises ValueError for another module, for one whose weights do not fit its architecture or that computes something
    else with them, or when classes are not one per logit.
    """
    model = _unwrapped(model)
    architecture = next((name for name, kind in ARCHITECTURES.items() if type(model) is kind), None)
    if architecture is None:
        raise ValueError(f"model is {type(model).__name__}, expected AnatomyXNet or DenseNetGAP.")
    config: dict[str, Any] = dict(cast(Any, model).config)
    if isinstance(model.classifier, nn.Linear):
        config["num_classes"] = model.classifier.out_features
    if len(classes) != config["num_classes"]:
        raise ValueError(f"classes has {len(classes)} names, the model has {config['num_classes']} logits.")
    names = list(classes)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"classes has {name!r}, expected names of findings.")
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"classes has {twice!r} twice, expected different names.")
    if calibration is not None and len(calibration.thresholds) != len(classes):
        raise ValueError(f"calibration has {len(calibration.thresholds)} thresholds for {len(classes)} classes.")
    plain = _plain_copy(model)
    fingerprint = _fingerprint(plain, config, preprocessing)
    backbone = plain.backbone if config["backbone"] == CUSTOM else None
    again = _build(architecture, config, cast("nn.Module | None", backbone))
    state = _weights(model, plain, again)
    again.load_state_dict(state)
    try:
        checkpoint.verify_fingerprint(_answer(again), fingerprint, path)
    except ValueError as error:
        raise ValueError(
            f"model computes something else than {type(model).__name__} does with its weights, expected a classifier "
            "none of whose parts was replaced by one of another kind."
        ) from error
    metadata = {
        "kind": KIND,
        "architecture": architecture,
        "config": config,
        "classes": names,
        "preprocessing": preprocessing.to_dict(),
        "training": dict(training or {}),
        "fingerprint": fingerprint,
        **({} if calibration is None else {"calibration": calibration.to_dict()}),
    }
    checkpoint.save(path, state, metadata)


def load_classifier(path: StrPath, *, backbone: nn.Module | None = None) -> tuple[nn.Module, ClassifierInfo]:
    """Read a classifier, and verify that it computes what it computed when it was saved.

    backbone: the module to fill, for a classifier that was built on a module of the caller's.
    Returns the model in eval mode on the CPU, in float32 whatever the file's type and torch's default are, and what
    the checkpoint says of it. Names of weights may have a prefix ("module."), see load_torchvision_densenet.
    Raises FileNotFoundError, and ValueError for a damaged file, one of another kind or architecture, or other outputs.
    """
    state, metadata = checkpoint.load(path, KIND)
    info = ClassifierInfo(
        architecture=metadata["architecture"],
        config=metadata["config"],
        classes=tuple(metadata["classes"]),
        preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
        training=metadata["training"],
        calibration=Calibration.from_dict(metadata["calibration"]) if "calibration" in metadata else None,
    )
    config = dict(info.config)
    if config["backbone"] == CUSTOM:
        if backbone is None:
            raise ValueError(f"checkpoint '{path}' was built on a custom backbone, expected it as backbone=.")
    elif backbone is not None:
        raise ValueError(f"checkpoint '{path}' has backbone '{config['backbone']}', expected no backbone=.")
    model = _build(info.architecture, config, backbone)
    _load_state(model, state, path)
    checkpoint.verify_fingerprint(_answer(model), metadata["fingerprint"], path)
    return model.eval(), info


def is_shipped(path: StrPath) -> bool:
    """Whether a file is one of the classifiers that come with axnet, or a link to one."""
    return Path(path).resolve().parent == SHIPPED.resolve()


def store_calibration(path: StrPath, calibration: Calibration) -> None:
    """Put a calibration into the checkpoint of a classifier; its weights stay as they are, bit by bit.

    Raises as load_classifier does for the file, ValueError for thresholds that are not one per finding.
    """
    state, metadata = checkpoint.load(path, KIND)
    if len(calibration.thresholds) != len(metadata["classes"]):
        raise ValueError(
            f"calibration has {len(calibration.thresholds)} thresholds for {len(metadata['classes'])} classes."
        )
    checkpoint.save(path, state, {**metadata, "calibration": calibration.to_dict()})


def _build(architecture: str, config: Mapping[str, Any], backbone: nn.Module | None) -> nn.Module:
    """build_classifier, in eval mode and float32 on the CPU, around the caller's backbone where there is one."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # the first weights are drawn, and then replaced
        model = build_classifier(architecture, config if backbone is None else {**config, "backbone": backbone})
    return model.cpu().float().eval()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's, DataParallel's, an averaged model's ..."""
    while True:
        inner = getattr(model, "_orig_mod", getattr(model, "module", None))
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _plain_copy(model: nn.Module) -> nn.Module:
    """The model in eval mode and float32 on the CPU; the caller's stays as it is."""
    # pruning and the older weight_norm leave computed weights on the module, which cannot be copied as they are
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return deepcopy(model, computed).cpu().float().eval()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"model cannot be copied, so it cannot be saved: {error}") from error


def _fingerprint(model: nn.Module, config: dict[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """Of the logits of a plain copy, for images of as many channels as its backbone takes."""
    side = (preprocessing.size, preprocessing.size)
    failure: Exception | None = None
    channels = _channels(model.backbone) if config["backbone"] == CUSTOM else [1]  # type: ignore[arg-type]
    for count in channels:
        shapes = [(1, count, *side), (1, config.get("num_anatomies", 1), *side)]
        try:
            return checkpoint.fingerprint(_answer(model), shapes)
        except (RuntimeError, TypeError, IndexError) as error:
            failure = failure or error
    named = "in_channels of the backbone" if config["backbone"] == CUSTOM else "a model that can be called"
    tried = " or ".join(map(str, channels))
    reason = " ".join(str(failure).split())
    raise ValueError(
        f"model does not take images [1, C, {side[0]}, {side[1]}] with C = {tried}, expected {named}: {reason}"
    ) from failure


def _channels(backbone: nn.Module) -> list[int]:
    """How many channels the images of a backbone of the caller's may have, the likeliest first."""
    first = [layer.in_channels for layer in backbone.modules() if isinstance(layer, nn.Conv2d)][:1]
    named = getattr(backbone, "in_channels", None)
    return list(dict.fromkeys([*([named] if isinstance(named, int) else []), *first, 1, 3]))


def _answer(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """What the fingerprint records: the logits of a model in eval mode and float32 on the CPU."""

    def run(image: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = model(image, mask).logits
        return logits

    return run


def _weights(model: nn.Module, plain: nn.Module, again: nn.Module) -> dict[str, Tensor]:
    """The weights of a model under the names of its architecture, in its own types; plain: its copy."""
    name_of = type(model).__name__
    shapes = again.state_dict()
    state, stored = {}, as_named_here(model.state_dict(), shapes)
    for name, wanted in shapes.items():
        value = stored.get(name)
        if value is None:
            path, _, leaf = name.rpartition(".")
            try:
                value = getattr(plain.get_submodule(path), leaf)
            except AttributeError:
                value = None
        if not isinstance(value, Tensor):
            raise ValueError(f"model has no tensor '{name}', which {name_of} has, so it cannot be saved.")
        if value.shape != wanted.shape:
            raise ValueError(
                f"model has '{name}' of shape {tuple(value.shape)}, where {name_of} as it was built has "
                f"{tuple(wanted.shape)}, so it cannot be saved."
            )
        state[name] = value.detach()
    extra = [name for name in stored if name not in state and _PARAMETRIZED.sub(r"\1\2", name) not in state]
    if extra:
        raise ValueError(f"model has '{extra[0]}', which {name_of} has not, so it cannot be saved.")
    return state


def _load_state(model: nn.Module, state: dict[str, Tensor], path: StrPath) -> None:
    wanted = model.state_dict()
    try:
        state = as_named_here(state, wanted)
    except ValueError as error:
        raise ValueError(f"checkpoint '{path}': {error}") from error
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
