"""The segmenter: MONAI's U-Net with its preprocessing, in memory and in files."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axnet import checkpoint
from axnet.data.findings import ORGANS
from axnet.data.image import read_image
from axnet.imaging import percentile_normalize, resize
from axnet.paths import StrPath
from axnet.segment.anatomy import Anatomy, compare, examine

KIND = "segmenter"
ATLAS_SIDE = 32
_TURN, _SHRINK = -6.0, 1.1  # degrees and factor of predict's second look: well within what training shows


def check_list(images: object) -> None:
    """Raise TypeError for what is no list of films, such as one film's path or pixels."""
    listed = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    if isinstance(images, (str, bytes, PathLike, dict)) or not listed:
        raise TypeError(f"images is a {type(images).__name__}, expected a list of paths or arrays [H, W].")
    if isinstance(images, np.ndarray) and images.ndim != 3:
        raise TypeError(f"images is an array of shape {images.shape}, expected a list of paths or arrays [H, W].")


@dataclass(frozen=True)
class SegmenterConfig:
    """Architecture and input of a segmenter.

    size: side in pixels at which the network works. channels: of the U-Net's levels, each level halving the side.
    low, high: percentiles that become 0 and 1. residual_units: convolutions of a level. norm: "batch" or "instance".
    """

    size: int = 160
    channels: tuple[int, ...] = (16, 32, 64, 96, 128)
    low: float = 1.0
    high: float = 99.0
    residual_units: int = 1
    norm: str = "batch"


PRESETS: dict[str, SegmenterConfig] = {
    # Six levels see the whole chest at once: the heart's upper and lower border lie where no edge is.
    "standard": SegmenterConfig(size=256, channels=(16, 32, 64, 96, 128, 160), residual_units=2, norm="instance"),
    "small": SegmenterConfig(),
    "tiny": SegmenterConfig(size=96, channels=(8, 16, 32, 64, 64)),
}
"""standard, small: 1.6 and 0.5 million parameters at 256 and 160 px, for real films; tiny: 0.15 million at 96 px."""


class Segmenter(nn.Module):
    """U-Net for left lung, right lung and heart; sigmoid outputs, since organs overlap.

    forward: image float32 [N, 1, size, size], percentile-normalised -> logits [N, 3, size, size] in the order of
    axnet.data.ORGANS. `training_record` holds what fit_segmenter measured; the buffer `atlas` [3, 32, 32] is the mean
    of the masks it was trained on, for films on which what the network draws is implausible.
    Raises ValueError when size is not a multiple of the U-Net's coarsest step.
    """

    def __init__(self, config: SegmenterConfig = PRESETS["small"]) -> None:
        """Build the network; weights are random."""
        from monai.networks.nets.unet import UNet

        super().__init__()
        steps = len(config.channels) - 1
        if config.size % 2**steps:
            raise ValueError(f"size is {config.size}, expected a multiple of {2**steps} for {steps + 1} levels.")
        self.config = config
        self.register_buffer("atlas", torch.zeros(len(ORGANS), ATLAS_SIDE, ATLAS_SIDE))
        self.training_record: dict[str, Any] = {}
        self.net = UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=len(ORGANS),
            channels=config.channels,
            strides=(2,) * steps,
            num_res_units=config.residual_units,
            norm=("INSTANCE", {"affine": True}) if config.norm == "instance" else config.norm,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, 3, size, size] of normalised images [N, 1, size, size]."""
        logits: Tensor = self.net(image)
        return logits

    @torch.no_grad()
    def predict_batch(self, images: Tensor) -> Tensor:
        """Probabilities [N, 3, H, W] for images [N, 1, H, W] in [0, 1], at the images' own resolution.

        Images are percentile-normalised here; no plausibility checks (see predict). Runs in eval mode on the weights'
        device and leaves the module's mode as it was.
        """
        if images.dim() != 4 or images.shape[1] != 1:
            raise ValueError(f"images has shape {list(images.shape)}, expected [N, 1, H, W].")
        if images.shape[0] == 0:
            return images.new_zeros((0, len(ORGANS), *images.shape[2:]))
        return F.interpolate(
            self._logits(images), size=images.shape[2:], mode="bilinear", align_corners=False
        ).sigmoid()

    atlas: Tensor

    def plausible_batch(self, images: Tensor) -> Tensor:
        """What predict finds for images [N, 1, H, W], as probabilities [N, 3, H, W]; the atlas for flagged films."""
        pixels = [image.numpy() for image in images[:, 0].float().cpu()]
        anatomies = self.predict(pixels, batch_size=max(1, len(pixels)), keep_probabilities=True)
        atlas = self.atlas.float().cpu().numpy()
        chosen = [atlas if a.flags or a.probabilities is None else a.probabilities for a in anatomies]
        probabilities = images.new_empty((len(chosen), len(ORGANS), *images.shape[2:]), dtype=torch.float32)
        for target, planes in zip(probabilities, chosen, strict=True):
            target.copy_(torch.from_numpy(resize(planes, (images.shape[2], images.shape[3]))))
        return probabilities

    def _logits(self, images: Tensor) -> Tensor:
        """Logits at the network's size of images [N, 1, H, W] in [0, 1], in eval mode on the weights' device.

        Computed in the weights' type, or that of autocast; float32.
        """
        weight = next(self.parameters())
        mode = self.training
        self.eval()
        try:
            logits: Tensor = self(self.prepare(images.to(weight.device, torch.float32)).to(weight.dtype))
        finally:
            self.train(mode)
        return logits.float()

    def prepare(self, images: Tensor) -> Tensor:
        """Images [N, 1, H, W] resized to the network's size and stretched between the percentiles of each."""
        side = (self.config.size, self.config.size)
        if images.shape[2:] != side:
            images = F.interpolate(images, size=side, mode="bilinear", align_corners=False, antialias=True)
        low, high = _extremes(images.flatten(1), self.config.low / 100, self.config.high / 100)[..., None, None, None]
        return ((images - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)

    @torch.no_grad()
    def predict(
        self,
        images: Sequence[StrPath | npt.NDArray[Any]],
        batch_size: int = 8,
        device: str | torch.device | None = None,
        *,
        keep_probabilities: bool = False,
    ) -> list[Anatomy]:
        """Organs of radiographs: files, or arrays [H, W] of any real type.

        The network sees each film twice, as it is and moved a little; the organs are those of the mean, and flagged
        where the two differ. device: where the weights are moved to first, None for where they are.
        keep_probabilities: whether each Anatomy carries the mean, at the network's size.
        Returns one Anatomy per image, with masks in the image's own frame. Raises as axnet.data.read_image does for
        files, ValueError for arrays of another shape or with values that are not finite, TypeError for another type,
        also for one image that is not in a list.
        """
        check_list(images)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more.")
        if device is not None:
            self.to(device)
        found: list[Anatomy] = []
        for start in range(0, len(images), batch_size):
            loaded = [_pixels(image) for image in images[start : start + batch_size]]
            small = np.stack([self._normalised(pixels) for pixels in loaded])
            batch = torch.from_numpy(small)[:, None].to(self.atlas.device)
            first = self._logits(batch).sigmoid()
            second = _moved(self._logits(_moved(batch)).sigmoid(), back=True)
            looks = [planes.cpu().numpy() for planes in ((first + second) / 2, first, second)]
            for each, one, other, image, pixels in zip(*looks, small, loaded, strict=True):
                anatomy = examine(resize(each, pixels.shape), compare(one, other, image))
                found.append(replace(anatomy, probabilities=each) if keep_probabilities else anatomy)
        return found

    def _normalised(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return resize(percentile_normalize(pixels, self.config.low, self.config.high), self.config.size)

    def save(self, path: StrPath, *, half: bool = False) -> None:
        """Write weights, configuration and a fingerprint to a .safetensors file (axnet.checkpoint.save).

        half: in float16, to which the weights are rounded in place first.
        """
        state = self.state_dict()
        if half:
            for value in state.values():
                if value.is_floating_point():
                    value.copy_(value.half())
            state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        loaded = copy.deepcopy(self).float()  # as load makes it, whatever the type of these weights
        metadata = {
            "kind": KIND,
            "config": asdict(self.config),
            "organs": list(ORGANS),
            "training": self.training_record,
            "fingerprint": checkpoint.fingerprint(loaded._logits, [(1, 1, self.config.size, self.config.size)]),
        }
        checkpoint.save(path, state, metadata)

    @classmethod
    def load(cls, path: StrPath) -> Segmenter:
        """Read a segmenter, float32 in eval mode on the CPU, and verify that it draws what it drew when it was saved.

        Raises FileNotFoundError, and ValueError for another kind of file, other weights or other outputs.
        """
        state, metadata = checkpoint.load(path, KIND)
        config = dict(metadata["config"])
        strange = sorted(config.keys() - {field.name for field in fields(SegmenterConfig)})
        if strange:
            raise ValueError(f"checkpoint '{path}' has the unknown setting '{strange[0]}': a later axnet wrote it.")
        segmenter = cls(SegmenterConfig(**{**config, "channels": tuple(config["channels"])})).float()
        try:
            segmenter.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"checkpoint '{path}' has other weights than its architecture: {reason}") from error
        segmenter.training_record = metadata["training"]
        segmenter.eval()
        checkpoint.verify_fingerprint(segmenter._logits, metadata["fingerprint"], path)
        return segmenter


def _extremes(rows: Tensor, low: float, high: float) -> Tensor:
    """torch.quantile of rows [N, M] at two levels, as [2, N], without sorting all of them."""
    last = rows.shape[1] - 1
    found = []
    for level, largest in ((low, False), (high, True)):
        rank = torch.tensor(level, dtype=rows.dtype) * last  # not where rows are, which would be waited for
        below = int(rank)
        count = last - below + 1 if largest else min(below + 2, last + 1)
        ends = rows.topk(count, dim=1, largest=largest).values
        at, after = (-1, max(-2, -count)) if largest else (below, min(below + 1, last))
        found.append(ends[:, at].lerp(ends[:, after], float(rank - below)))
    return torch.stack(found)


def _moved(planes: Tensor, *, back: bool = False) -> Tensor:
    """Planes [N, K, s, s] turned and shrunk so that all of them stays in view, or back."""
    turn, zoom = math.radians(_TURN), _SHRINK
    if back:
        turn, zoom = -turn, 1 / zoom
    cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
    theta = planes.new_tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    with torch.autocast(planes.device.type, enabled=False):  # bfloat16 is too coarse for places
        grid = F.affine_grid(theta, [1, *planes.shape[1:]], align_corners=False)
        return F.grid_sample(planes, grid.expand(len(planes), -1, -1, -1), align_corners=False)


def _pixels(image: StrPath | npt.NDArray[Any]) -> npt.NDArray[Any]:
    if isinstance(image, (str, PathLike)):
        return read_image(image)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "biuf":
        kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise TypeError(f"images has {kind}, expected paths or arrays [H, W] of real numbers.")
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"images has an array of shape {image.shape}, expected [H, W].")
    if not np.isfinite(image).all():
        raise ValueError("images has an array with values that are not finite, expected grey values.")
    return image.astype(np.uint8) if image.dtype.kind == "b" else image
