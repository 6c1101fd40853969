"""ImageNet weights of a DenseNet from a file in torchvision's format."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from axnet.models.backbone import DenseNetBackbone
from axnet.models.names import as_named_here
from axnet.paths import StrPath

_SHOWN = 6
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights")


def load_torchvision_densenet(backbone: DenseNetBackbone, path: StrPath) -> None:
    """Load the weights of a torchvision DenseNet into a backbone, every tensor or none.

    path: .safetensors, or a .pth/.pt state dict (read with weights_only=True, so no code in it can run). Layer names
        may be modern ("denselayer1.norm1.weight") or those of the files of 2017 ("denselayer1.norm.1.weight"), and
        stand under a prefix of DataParallel, torch.compile, Lightning or a module of one's own ("module.densenet121.");
        what stands beside that prefix is left out. The dict may be an entry ("state_dict") of a training state.
    A 3-channel first convolution is summed over its input channels for a backbone with in_channels=1: a grey image
    then gives what it gave when repeated in three channels. The classifier and blocks that the backbone lacks are
    left out; batch counters, which old files lack, are left as they are.
    Raises FileNotFoundError, and ValueError that lists what is missing, left over or of another shape.
    """
    wanted = {name: value for name, value in backbone.state_dict().items() if not name.endswith("num_batches_tracked")}
    stored = read_state(Path(path))
    try:
        stored = as_named_here(stored, wanted)
    except ValueError as error:
        raise ValueError(f"weights '{path}': {error}") from error
    first = stored.get("features.conv0.weight")
    if first is not None and first.ndim == 4 and first.shape[1] == 3 and backbone.in_channels == 1:
        stored["features.conv0.weight"] = first.sum(1, keepdim=True)
    missing = [name for name in wanted if name not in stored]
    shaped = [
        f"{name} {tuple(stored[name].shape)} for {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in stored and stored[name].shape != value.shape
    ]
    left_over = [name for name in stored if name not in wanted and not _ignorable(name, backbone)]
    if missing or shaped or left_over:
        parts = (("missing", missing), ("of another shape", shaped), ("left over", left_over))
        listed = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in parts if names)
        raise ValueError(f"weights '{path}' do not match a torchvision {backbone.preset}: {listed}.")
    backbone.load_state_dict({name: stored[name] for name in wanted}, strict=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a state dict, which is read without running code in it."""
    if not path.is_file():
        raise FileNotFoundError(f"weights file '{path}' does not exist.")
    try:
        stored = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"weights file '{path}' is damaged or holds more than tensors, expected .safetensors or a .pth state dict."
        ) from error
    if isinstance(stored, dict):
        stored = next((stored[name] for name in _CONTAINERS if isinstance(stored.get(name), dict)), stored)
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"weights file '{path}' holds {type(stored).__name__}, expected a state dict of tensors.")
    return stored


def _ignorable(name: str, backbone: DenseNetBackbone) -> bool:
    if name.startswith("classifier.") or name.endswith("num_batches_tracked"):
        return True
    part = re.match(r"features\.(?:(?:denseblock|transition)(\d)|(norm5))\.", name)
    if part is None:
        return False
    built = part[0].removesuffix(".").removeprefix("features.")
    return built not in dict(backbone.features.named_children())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
