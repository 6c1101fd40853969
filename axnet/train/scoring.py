"""Score images with a trained classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from axnet.models.preprocessing import Preprocessing
from axnet.train.data import Batches, XraySet
from axnet.train.inputs import to_input
from axnet.train.shares import ALONE, Share
from axnet.train.views import Views


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode without gradients, and back into the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def predict(
    model: nn.Module,
    data: XraySet,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Probabilities float32 [N,K] of the findings of a set with masks: the sigmoid of predict_logits, which see."""
    logits = predict_logits(model, data, preprocessing, batch_size=batch_size, progress=progress)
    return np.asarray(torch.from_numpy(logits).sigmoid().numpy(), dtype=np.float32)


def predict_logits(
    model: nn.Module,
    data: XraySet,
    preprocessing: Preprocessing,
    *,
    views: Views | None = None,
    batch_size: int = 64,
    share: Share = ALONE,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Logits float32 [N,K] of the findings of a set with masks, computed on the device and in the type of model.

    preprocessing: of the model; its mean and std are used, the rest must be that of the set. views: test-time
    augmentation, over which the logits are averaged; None for the films as they are. share: of the batches, where
    several processes call this together: each computes its own, and all return what one alone would. progress: called
    with the number of films done so far.
    """
    if data.preprocessing.size != preprocessing.size:
        raise ValueError(
            f"data has images of {data.preprocessing.size} pixels, the model expects {preprocessing.size}."
        )
    if data.preprocessing.percentiles != preprocessing.percentiles:
        raise ValueError(
            f"data is stretched by percentiles {data.preprocessing.percentiles}, the model expects "
            f"{preprocessing.percentiles}."
        )
    batches = Batches(data)
    weights = next(model.parameters())
    rows = torch.zeros(len(data), len(data.findings))
    with evaluating(model):
        for start in share.of(range(0, len(data), batch_size)):
            batch = batches.__getitems__(list(range(start, min(start + batch_size, len(data)))))
            ready = to_input({key: value.to(weights.device) for key, value in batch.items()}, preprocessing)
            image, mask = ready["image"], ready["mask"]
            seen = [(image, mask)] if views is None else views.of(image, mask)
            logits = [model(one.to(weights.dtype), organs).logits.float() for one, organs in seen]
            found = torch.stack(logits).mean(0).cpu()
            if not start and rows.shape[1] != found.shape[1]:  # of films without labels
                rows = rows.new_zeros(len(data), found.shape[1])
            rows[start : start + len(found)] = found
            if progress is not None:
                progress(min(start + batch_size, len(data)))
    return np.asarray(share.summed(rows).numpy(), dtype=np.float32)
