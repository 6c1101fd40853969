"""Writes the golden vectors of this folder: the layers' formulas in numpy, float64, without torch or axnet.

    python tests/golden/make.py [FOLDER]

Formulas: MaskedAttention as in ThoraX-PriorNet's public code (IEEE Access 2024), PCAM pooling (arXiv 2005.14480), and
A3 of docs/method.md. Gradients are complex steps (Squire and Trapp, 1998): every number of an input is moved by 1e-200
i, and the imaginary part of the loss is its derivative to the last digit, with no backward formula to get wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.complex128]
Values = dict[str, npt.NDArray[np.float64]]
FOLDER = Path(__file__).resolve().parent
EPS, MOMENTUM, STEP = 1e-5, 0.1, 1e-200
BUFFERS = ("running_mean", "running_var")


def sigmoid(t: Array) -> Array:
    return 1 / (1 + np.exp(-t))


def leaky_relu(t: Array) -> Array:
    return np.where(t.real > 0, t, 0.2 * t)


def maximum(t: Array) -> Array:
    """Over the last axis, by the real part."""
    return np.take_along_axis(t, t.real.argmax(-1)[..., None], -1)[..., 0]


def resize(mask: Array, height: int, width: int) -> Array:
    """Bilinear between pixel centres, edges repeated: what align_corners=False means."""
    for axis, size in ((2, height), (3, width)):
        old = mask.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(4)])
        mask = mask.take(low, axis) * (1 - share) + mask.take(high, axis) * share
    return mask


def batch_norm(y: Array, v: dict[str, Array], training: bool) -> tuple[Array, dict[str, Array]]:
    """nn.BatchNorm2d: Z, and the running statistics afterwards (of the variance the unbiased one)."""
    mean, var = v["running_mean"], v["running_var"]
    after = {"running_mean": mean, "running_var": var}
    if training:
        count = y.shape[0] * y.shape[2] * y.shape[3]
        mean = y.mean((0, 2, 3))
        var = ((y - mean[:, None, None]) ** 2).mean((0, 2, 3))
        new = {"running_mean": mean, "running_var": var * count / (count - 1)}
        after = {name: (1 - MOMENTUM) * after[name] + MOMENTUM * new[name] for name in BUFFERS}
    normal = (y - mean[:, None, None]) / np.sqrt(var + EPS)[:, None, None]
    return v["norm_weight"][:, None, None] * normal + v["norm_bias"][:, None, None], after


def attention(v: dict[str, Array], *, training: bool, concat: bool = False) -> dict[str, Array]:
    """Z [N, C or A*C, H, W] of x and mask [N, A, H', W'].

    hidden_weight [A, 4, h, C], in the order avg X, max X, max mX, avg mX.
    """
    x = v["x"]
    mask = resize(v["mask"], *x.shape[2:])
    blended = []
    for a in range(mask.shape[1]):
        masked = mask[:, a : a + 1] * x
        flat, masked_flat = x.reshape(*x.shape[:2], -1), masked.reshape(*x.shape[:2], -1)
        descriptors = (flat.mean(-1), maximum(flat), maximum(masked_flat), masked_flat.mean(-1))
        layers = zip(descriptors, v["hidden_weight"][a], v["hidden_bias"][a], strict=True)
        hidden = sum(leaky_relu(d @ weight.T + bias) for d, weight, bias in layers)
        gate = sigmoid(hidden @ v["gate_weight"][a].T + v["gate_bias"][a])[..., None, None]
        blended.append(gate * masked + (1 - gate) * x)
    y = np.concatenate(blended, 1) if concat else sum(blended) / len(blended)
    z, after = batch_norm(y, v, training)
    return {"y": z, **{f"after.{name}": value for name, value in after.items()}}


def pcam(v: dict[str, Array]) -> dict[str, Array]:
    """Logits [N, K], probability maps [N, K, H, W] and pooled features [N, K, C]: pooled = sum p X / sum p."""
    logit_map = np.einsum("kc,nchw->nkhw", v["weight"], v["x"]) + v["bias"][:, None, None]
    prob = sigmoid(logit_map)
    pooled = np.einsum("nkhw,nchw->nkc", prob, v["x"]) / prob.sum((2, 3))[..., None]
    return {"logits": (pooled * v["weight"]).sum(-1) + v["bias"], "prob_maps": prob, "pooled": pooled}


def record(run: Callable[[dict[str, Array]], dict[str, Array]], values: Values, grads: Values) -> Values:
    """Inputs, outputs, and the gradients of sum(output * grad) over the outputs that grads names."""

    def loss(changed: dict[str, Array]) -> complex:
        outputs = run(changed)
        return complex(sum((outputs[name] * grad).sum() for name, grad in grads.items()))

    held = {name: value.astype(np.complex128) for name, value in values.items()}
    gradients = {}
    for name, value in held.items():
        if name in BUFFERS:
            continue
        gradient = np.empty(value.shape)
        for place in np.ndindex(value.shape):
            moved = value.copy()
            moved[place] += STEP * 1j
            gradient[place] = loss({**held, name: moved}).imag / STEP
        gradients[f"grad.{name}"] = gradient
    outputs = {name: value.real for name, value in run(held).items()}
    return {**values, **outputs, **{f"grad_out.{name}": grad for name, grad in grads.items()}, **gradients}


def attention_values(n: int, c: int, h: int, w: int, anatomies: int, mask: tuple[int, int], out: int) -> Values:
    random = np.random.default_rng([n, c, h, w, anatomies])
    hidden = 3
    return {
        "x": random.normal(0.3, 1, (n, c, h, w)),
        "mask": random.random((n, anatomies, *mask)),
        "hidden_weight": random.normal(0, 0.5, (anatomies, 4, hidden, c)),
        "hidden_bias": random.normal(0, 0.3, (anatomies, 4, hidden)),
        "gate_weight": random.normal(0, 0.5, (anatomies, c, hidden)),
        "gate_bias": random.normal(0, 0.3, (anatomies, c)),
        "norm_weight": random.normal(1, 0.2, out),
        "norm_bias": random.normal(0, 0.2, out),
        "running_mean": random.normal(0, 0.3, out),
        "running_var": random.uniform(0.5, 2, out),
    }


def vectors() -> dict[str, Values]:
    """All golden vectors by the name of their file."""
    found: dict[str, Values] = {}
    random = np.random.default_rng(0)
    # name: anatomies, training, concat, and the resolution of the masks for features of 4 x 3 pixels
    for name, anatomies, training, concat, mask in (
        ("masked_attention_eval", 1, False, False, (8, 6)),
        ("masked_attention_train", 1, True, False, (4, 3)),
        ("attention_mean_train", 2, True, False, (6, 7)),
        ("attention_concat_eval", 2, False, True, (2, 3)),
    ):
        out = 5 * (anatomies if concat else 1)
        values = attention_values(2, 5, 4, 3, anatomies, mask, out)

        def run(v: dict[str, Array], training: bool = training, concat: bool = concat) -> dict[str, Array]:
            return attention(v, training=training, concat=concat)

        found[name] = record(run, values, {"y": random.normal(size=(2, out, 4, 3))})
    for maps in (1, 3):
        values = {
            "x": random.normal(0.3, 1, (2, 6, 4, 5)),
            "weight": random.normal(0, 0.5, (maps, 6)),
            "bias": random.normal(0, 0.5, maps),
        }
        sizes = {"logits": (2, maps), "prob_maps": (2, maps, 4, 5), "pooled": (2, maps, 6)}
        found[f"pcam_{maps}"] = record(pcam, values, {name: random.normal(size=size) for name, size in sizes.items()})
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, values in vectors().items():
        np.savez_compressed(target / f"{name}.npz", **values)
