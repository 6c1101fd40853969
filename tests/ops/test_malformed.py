"""Every op, forward and backward, given what does not fit: one sentence that names the argument, never a crash."""

from __future__ import annotations

import pytest
import torch
from opcases import DEVICE, FUSED

from axnet.ops import calls, fused_ops, has_gated_pwap

N, A, C, H, W, K = 2, 2, 8, 5, 4, 3


def well_formed(backend: str) -> dict[str, dict[str, object]]:
    """Arguments by name that every op of a backend accepts."""
    ops = fused_ops(backend)
    x, mask, gate = torch.randn(N, C, H, W), torch.rand(N, A, H, W), torch.rand(N, A, C)
    first = calls.masked_moments(ops, x, mask, second=True, positions=True, blocks=1)
    norm = {"weight": torch.rand(C), "bias": torch.rand(C), "eps": 1e-5, "concat": False}
    given = {
        **{"x": x, "mask": mask, "gate": gate, "moments": first.moments, "mass": first.mass, **norm, "save": True},
        **{"running_mean": torch.zeros(C), "running_var": torch.ones(C)},
        **{"link": first.link, "coef_link": first.coef_link},
    }
    out = calls.gate_norm(ops, **given)
    back = {
        **{"grad_z": torch.randn(N, C, H, W), "x": x, "mask": mask, "gate": gate, "mass": first.mass},
        **{"weight": norm["weight"], "mean": out.mean, "var": out.var, "saved": out.saved},
        **{"eps": 1e-5, "batch_statistics": True, "concat": False},
    }
    maps = {"x": x, "weight": torch.randn(K, C), "bias": torch.randn(K)}
    pooled = calls.pwap(ops, **maps)
    cases: dict[str, dict[str, object]] = {
        "masked_moments": {"x": x, "mask": mask, "second": True, "positions": True, "blocks": 1},
        "masked_moments_backward": {
            **{"x": x, "mask": mask, "argmax": first.argmax, "grad_descriptors": torch.rand_like(first.descriptors)},
            **{"grad_z": back["grad_z"], "coef": calls.gate_norm_backward(ops, **back).coef},
            **{"input_grad": True, "mask_grad": True},
        },
        "gate_norm": given,
        "gate_norm_backward": back,
        "pwap": maps,
        "pwap_backward": {
            **{"grad_pooled": torch.randn(N, K, C), "grad_prob": torch.randn(N, K, H, W), "x": x},
            **{"weight": maps["weight"], "logits": pooled.logits, "norm": pooled.norm, "pooled": pooled.pooled},
            "input_grad": True,
        },
    }
    if has_gated_pwap(backend, torch.device(DEVICE).type):
        cases["gated_pwap"] = {
            **{"x": x, "mask": mask, "gate": gate, "norm_weight": norm["weight"], "norm_bias": norm["bias"]},
            **{"mean": out.mean, "var": out.var, "eps": 1e-5, "weight": maps["weight"], "bias": maps["bias"]},
        }
    if backend == "native" and DEVICE == "cpu":
        cases["grouped_linear"] = {"x": torch.randn(3, 4, C), "weight": torch.randn(3, 7, C), "bias": torch.randn(3, 7)}
    return cases


def longer(t: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.cat((t, t.narrow(axis, 0, 1)), axis)


def malformed(t: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor made wrong in every way that a kernel would not notice."""
    wrong = {
        "another axis": t[None],
        "an axis less": t[0],
        "integers": t.to(torch.int64),
        "complex": t.to(torch.complex64),
        "none": t[(slice(0, 0), ...) + ((slice(0, 0),) if t.dim() > 1 else ())],
        "scalar": t.new_zeros(()),
    }
    return wrong | {f"longer along {axis}": longer(t, axis) for axis in range(t.dim())}


# Nothing else in these calls says how long that axis is.
FITS = {("pwap", "x", f"longer along {axis}") for axis in (0, 2, 3)}
FITS |= {("masked_moments", "mask", "longer along 1"), ("masked_moments", "x", "longer along 1")}
FITS |= {("grouped_linear", "x", "longer along 1")}
# The links take no part in the numbers: autograd itself holds their gradients to their shapes.
FREE = {("gate_norm", "link"), ("gate_norm", "coef_link")}


@pytest.mark.parametrize("backend", FUSED)
def test_malformed_tensors(backend):
    tried = 0
    for op, given in well_formed(backend).items():
        call = getattr(fused_ops(backend), op)
        call(**given)
        for name, t in given.items():
            if not isinstance(t, torch.Tensor) or (op, name) in FREE:
                continue
            for way, wrong in malformed(t).items():
                if (op, name, way) in FITS:
                    call(**{**given, name: wrong})
                    continue
                case = f"{op}, {name}, {way}"
                try:
                    call(**{**given, name: wrong})
                except RuntimeError as error:
                    said = str(error)
                else:
                    said = "accepted"
                assert said.startswith(f"{op}: "), f"{case}: {said}"
                tried += 1
    assert tried > 250


@pytest.mark.parametrize("backend", FUSED)
def test_types_strides_and_devices(backend):
    for op, given in well_formed(backend).items():
        call = getattr(fused_ops(backend), op)
        for name in set(given) & {"mask", "moments", "mass", "argmax", "logits", "norm", "saved", "coef"}:
            t = given[name]
            other = torch.float32 if t.dtype == torch.float64 else torch.float64
            with pytest.raises(RuntimeError, match=rf"{op}: {name} is .*, expected"):
                call(**{**given, name: t.to(other)})
        for name in set(given) & {"mask", "moments", "mass", "argmax", "logits", "norm", "saved"}:
            t = given[name].transpose(0, -1).contiguous().transpose(0, -1)
            with pytest.raises(RuntimeError, match=rf"{op}: {name} has gaps or another order"):
                call(**{**given, name: t})


@pytest.mark.parametrize("backend", FUSED)
def test_counts_beyond_the_kernels(backend):
    cases, ops = well_formed(backend), fused_ops(backend)
    x, crowd = cases["pwap"]["x"], torch.rand(N, 40, H, W)
    for maps in (0, 65, 500):
        with pytest.raises(RuntimeError, match=r"pwap: weight has shape .* with 1 to 64 maps"):
            ops.pwap(x, torch.randn(maps, C), None)
    for mask in (crowd, crowd[:, :0], crowd[:, :17]):
        with pytest.raises(RuntimeError, match=r"mask has shape .* with 1 to 16 anatomies"):
            ops.masked_moments(x, mask, True, True, 1)
    for blocks in (-1, 3):
        with pytest.raises(RuntimeError, match=r"blocks is"):
            ops.masked_moments(x, crowd[:, :2].contiguous(), True, True, blocks)
    for shape in ((N, C, 0, W), (N, C, H, 0), (N, 0, H, W)):
        empty = torch.zeros(shape)
        with pytest.raises(RuntimeError, match=r"x has shape"):
            ops.pwap(empty, torch.randn(K, shape[1]), None)
        with pytest.raises(RuntimeError, match=r"x has shape"):
            ops.masked_moments(empty, torch.zeros(N, A, *shape[2:]), True, True, 1)
    norm = cases["gate_norm"]
    for wrong, words in (
        ({"running_var": None}, "running_mean and running_var come together"),
        ({"moments": None}, "moments are needed"),
        ({"moments": norm["moments"][:0]}, "moments are needed"),
        ({"concat": True}, "weight has shape"),
    ):
        with pytest.raises(RuntimeError, match=words):
            ops.gate_norm(**{**norm, **wrong})
    with pytest.raises(RuntimeError, match="grad_z and coef come together"):
        ops.masked_moments_backward(**{**cases["masked_moments_backward"], "coef": None})


@pytest.mark.parametrize("backend", FUSED)
def test_empty_batches_are_well_formed(backend):
    for op, given in well_formed(backend).items():
        if op == "grouped_linear":
            continue
        with_images = {name for name, t in given.items() if isinstance(t, torch.Tensor) and t.shape[:1] == (N,)}
        out = getattr(fused_ops(backend), op)(**{n: t[:0] if n in with_images else t for n, t in given.items()})
        assert len(out) >= 2


@pytest.mark.skipif("native" not in FUSED, reason="of the native kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float32])
def test_gates_weights_and_statistics_of_any_type_are_read(dtype):
    cases, ops = well_formed("native"), fused_ops("native")
    read = {"gate", "weight", "bias", "running_mean", "running_var", "norm_weight", "norm_bias"}
    tried = 0
    for op in set(cases) & {"gate_norm", "gate_norm_backward", "pwap", "pwap_backward", "gated_pwap"}:
        names = read | ({"mean", "var"} if op == "gated_pwap" else set())
        other = {name: cases[op][name].to(dtype) for name in names & set(cases[op])}
        rounded = {name: t.float() for name, t in other.items()}
        actual, expected = (getattr(ops, op)(**{**cases[op], **given}) for given in (other, rounded))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)
            tried += 1
    assert tried >= 13
