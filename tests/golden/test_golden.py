"""Every backend against the golden vectors of this folder, which numpy made (make.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import make
from opcases import BACKENDS, DEVICE, assert_close
from torch import Tensor

from axnet import functional as AF
from axnet import nn as axnn

FOLDER = Path(__file__).resolve().parent
TOLERANCE = 1e-10


def read(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]).to(DEVICE) for key in stored.files}


def load(module: axnn.AnatomyAwareAttention | axnn.MaskedAttention, v: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the stored numbers into a module; returns its parameters by the names of the file, one tensor or many."""
    if isinstance(module, axnn.AnatomyAwareAttention):
        norm, names = module.norm, ("hidden_weight", "hidden_bias", "gate_weight", "gate_bias")
        own = {name: [getattr(module, name)] for name in names}
    else:
        norm, (first, last) = module.bn3, ([layer[0] for layer in module.conv_list], module.final_block[0])
        own = {
            "hidden_weight": [layer.weight for layer in first],
            "hidden_bias": [layer.bias for layer in first],
            "gate_weight": [last.weight],
            "gate_bias": [last.bias],
        }
    own |= {"norm_weight": [norm.weight], "norm_bias": [norm.bias]}
    own |= {name: [getattr(norm, name)] for name in make.BUFFERS}
    with torch.no_grad():
        for name, parts in own.items():
            stored = v[name].reshape(-1).chunk(len(parts))
            for part, value in zip(parts, stored, strict=True):
                part.copy_(value.reshape(part.shape))
    return own


CASES = [
    *((name, kind) for name in ("masked_attention_eval", "masked_attention_train") for kind in ("one", "masked")),
    ("attention_mean_train", "mean"),
    ("attention_concat_eval", "concat"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_attention(backend, name, kind):
    v = read(name)
    options = {"dropout": 0.0, "backend": backend, "dtype": torch.float64, "device": DEVICE}
    ratio = v["hidden_weight"].shape[2] / v["x"].shape[1]
    if kind == "masked":
        module = axnn.MaskedAttention(5, ratio, **options)
    else:
        fusion = "concat" if kind == "concat" else "mean"
        module = axnn.AnatomyAwareAttention(5, v["mask"].shape[1], ratio, fusion, **options)
    own = load(module, v)
    module.train(name.endswith("train"))
    x, mask = v["x"].requires_grad_(), v["mask"].requires_grad_()
    y = module(x, mask)
    y.backward(v["grad_out.y"])
    assert_close("y", y.detach(), v["y"], TOLERANCE)
    for key, parts in {"x": [x], "mask": [mask], **own}.items():
        if key in make.BUFFERS:
            assert_close(key, parts[0], v[f"after.{key}"], TOLERANCE)
        else:
            grad = torch.cat([part.grad.reshape(-1) for part in parts])
            assert_close(f"grad {key}", grad, v[f"grad.{key}"].reshape(-1), TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("maps", [1, 3])
def test_pooling(backend, maps):
    v = read(f"pcam_{maps}")
    x, weight, bias = (v[name].requires_grad_() for name in ("x", "weight", "bias"))
    logits, prob = AF.pcam(x, weight, bias, backend=backend)
    pooled, same = AF.pwap(x, weight, bias, backend=backend)
    outputs = {"logits": logits, "prob_maps": prob, "pooled": pooled}
    sum((output * v[f"grad_out.{name}"]).sum() for name, output in outputs.items()).backward()
    assert_close("prob_maps of pwap", same.detach(), v["prob_maps"], TOLERANCE)
    for name, output in outputs.items():
        assert_close(name, output.detach(), v[name], TOLERANCE)
    for name in ("x", "weight", "bias"):
        assert_close(f"grad {name}", v[name].grad, v[f"grad.{name}"], TOLERANCE)


def test_the_script_makes_what_is_stored():
    for name, values in make.vectors().items():
        stored = read(name)
        assert set(stored) == set(values)
        for key, value in values.items():
            np.testing.assert_allclose(stored[key].cpu(), value, rtol=1e-12, atol=1e-13, err_msg=f"{name}: {key}")
    assert {f"{name}.npz" for name in make.vectors()} == {path.name for path in FOLDER.glob("*.npz")}
