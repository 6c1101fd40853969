"""Statistics of batch normalisation taken again, from films as a trained network will read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from axnet.models.preprocessing import Preprocessing
from axnet.train.data import Batches, XraySet
from axnet.train.inputs import to_input
from axnet.train.module import MeanAUROC
from axnet.train.scoring import predict_logits

_FEW, _MANY = 8, 32
"""Least and most films of a batch whose statistics are taken: one film says little, many take memory."""


@dataclass(frozen=True)
class Kept:
    """Whether the new statistics were kept, the validation AUC of those that were, and that of the others."""

    precise: bool
    val_auc: float
    other_auc: float = math.nan


def with_precise_bn(
    model: nn.Module,
    preprocessing: Preprocessing,
    train: XraySet,
    validation: XraySet | None,
    val_auc: float,
    *,
    films: int,
    batch_size: int,
    seed: int,
    always: bool,
) -> Kept:
    """Take the statistics again from so many films of train, and keep the better ones by their validation AUC.

    val_auc: that of the model as it is. batch_size: of the training steps, on all processes; seed: of the films that
    are drawn. always: whether the new ones are kept, whatever their AUC, as they are without a validation set.
    """
    norms = _norms_of(model)
    if not norms:
        return Kept(precise=False, val_auc=val_auc)
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    size = max(_FEW, min(_MANY, batch_size))
    precise_bn(model, films_as_read(train, preprocessing, films, size, seed, next(model.parameters())))
    if validation is None:
        return Kept(precise=True, val_auc=val_auc)
    measure = MeanAUROC()
    measure.sync_on_compute = False
    logits = torch.from_numpy(predict_logits(model, validation, preprocessing, batch_size=size))
    measure.update(logits.sigmoid(), validation.labels)
    found = float(measure.compute())
    if always or math.isnan(val_auc) or found >= val_auc:
        return Kept(precise=True, val_auc=found, other_auc=val_auc)
    for norm, buffers in zip(norms, before, strict=True):
        for buffer, value in zip(norm.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return Kept(precise=False, val_auc=val_auc, other_auc=found)


@torch.no_grad()
def precise_bn(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Give every batch normalisation the mean of its statistics over batches (Wu and Johnson, arXiv 2105.07576).

    model: maps (image [N,1,H,W], mask [N,A,H,W]) to anything; nothing in it is dropped meanwhile, and it is in eval
    mode afterwards. batches: on the model's device; without any, nothing is changed.
    """
    norms = _norms_of(model)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for number, (image, mask) in enumerate(batches):
        if not number:
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean
        model(image, mask)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def films_as_read(
    data: XraySet, preprocessing: Preprocessing, count: int, batch_size: int, seed: int, like: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (image, mask) of `count` films of a set, drawn by seed, none twice: normalised and not augmented.

    like: a tensor whose device and type they get. All films where there are fewer; a last batch that is smaller than
    the others is left out.
    """
    films = Batches(data)
    drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    size = min(batch_size, len(drawn))
    for start in range(0, len(drawn) - size + 1, size):
        batch = films.__getitems__(drawn[start : start + size])
        ready = to_input({name: value.to(like.device) for name, value in batch.items()}, preprocessing)
        yield ready["image"].to(like.dtype), ready["mask"].to(like.dtype)


def _norms_of(model: nn.Module) -> list[_BatchNorm]:
    return [norm for norm in model.modules() if isinstance(norm, _BatchNorm) and norm.running_mean is not None]
