"""Floating point, packed pairs of 16-bit numbers, conversions."""

from __future__ import annotations

import re
from functools import reduce
from typing import Any

import numpy as np

from benchmarks.sass.integers import COMPARE, bool_mod, logical
from benchmarks.sass.machine import Group, Machine
from benchmarks.sass.operands import (
    F32,
    F64,
    I64,
    U32,
    U64,
    f32,
    f64,
    i32,
    is_pred,
    literal,
    op,
    pred,
    put,
    put_f32,
    put_pred,
    put_wide,
    raw,
    u32,
    wide,
)
from benchmarks.sass.program import RZ, Instruction, Operand


@op("FADD")
def fadd(m: Machine, ins: Instruction, g: Group) -> None:
    put_f32(m, ins, g, ins.operands[0], f32(m, ins.operands[1]) + f32(m, ins.operands[2]))


@op("FMUL")
def fmul(m: Machine, ins: Instruction, g: Group) -> None:
    put_f32(m, ins, g, ins.operands[0], f32(m, ins.operands[1]) * f32(m, ins.operands[2]))


@op("FFMA")
def ffma(m: Machine, ins: Instruction, g: Group) -> None:
    a, b, c = (np.asarray(f32(m, o)).astype(F64) for o in ins.operands[1:4])
    value = a * b + c
    if "SAT" in ins.mods:
        value = np.clip(value, 0, 1)
    put_f32(m, ins, g, ins.operands[0], value.astype(F32))


@op("FMNMX")
def fmnmx(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b, p = ins.operands
    x, y = f32(m, a), f32(m, b)
    if "NAN" in ins.mods:
        low, high = np.minimum(x, y), np.maximum(x, y)
    else:
        low, high = np.fmin(x, y), np.fmax(x, y)
    put_f32(m, ins, g, d, np.where(pred(m, p), low, high))


def compare_floats(kind: str, x: Any, y: Any) -> Any:
    nan = np.isnan(x) | np.isnan(y)
    if kind in ("NAN", "NUM"):
        return nan if kind == "NAN" else ~nan
    if kind in ("T", "F"):
        return np.full(np.shape(nan), kind == "T")
    base = COMPARE[kind.removesuffix("U") if len(kind) == 3 else kind](x, y)
    return base | nan if len(kind) == 3 else base & ~nan


@op("FSETP", "DSETP")
def fsetp(m: Machine, ins: Instruction, g: Group) -> None:
    d, d2, a, b, c = ins.operands[:5]
    get = f32 if ins.op == "FSETP" else f64
    value = compare_floats(ins.mods[0], get(m, a), get(m, b))
    how, other = bool_mod(ins), pred(m, c)
    first, second = logical(how, value, other), logical(how, ~np.asarray(value), other)
    put_pred(m, ins, g, d, first)
    put_pred(m, ins, g, d2, second)


@op("FSET")
def fset(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b, c = ins.operands[:4]
    kind = next(x for x in ins.mods if x not in ("BF", "FTZ"))
    value = logical(bool_mod(ins), compare_floats(kind, f32(m, a), f32(m, b)), pred(m, c))
    put(m, ins, g, d, np.where(value, U32(0x3F800000 if "BF" in ins.mods else 0xFFFFFFFF), U32(0)))


@op("FCHK")
def fchk(m: Machine, ins: Instruction, g: Group) -> None:
    # whether a division needs its slow path: denormal, infinite or far apart
    d, a, b = ins.operands[:3]
    x, y = np.abs(f32(m, a)), np.abs(f32(m, b))
    slow = ~np.isfinite(x) | ~np.isfinite(y) | (y < 1e-37) | (y > 1e37) | ((x < 1e-30) & (x > 0))
    put_pred(m, ins, g, d, np.broadcast_to(slow, (m.L,)))


@op("MUFU")
def mufu(m: Machine, ins: Instruction, g: Group) -> None:
    d, a = ins.operands
    kind = ins.mods[0]
    if kind in ("RCP64H", "RSQ64H"):  # on the upper half of a double
        x = np.asarray(raw(m, a)).astype(U64) << U64(32)
        v = x.view(F64)
        y = 1.0 / v if kind == "RCP64H" else 1.0 / np.sqrt(v)
        return put(m, ins, g, d, (np.asarray(y, F64).view(U64) >> U64(32)).astype(U32))
    x = f32(m, a)
    one = F32(1)
    found = {
        **{"RCP": lambda: one / x, "RSQ": lambda: one / np.sqrt(x), "SQRT": lambda: np.sqrt(x)},
        **{"EX2": lambda: np.exp2(x), "LG2": lambda: np.log2(x), "TANH": lambda: np.tanh(x)},
        **{"SIN": lambda: np.sin(x), "COS": lambda: np.cos(x)},
    }
    return put_f32(m, ins, g, d, found[kind]())


@op("DADD")
def dadd(m: Machine, ins: Instruction, g: Group) -> None:
    numbers = [o for o in ins.operands[1:] if not (o.kind == "R" and o.index == RZ)]
    total = f64(m, numbers[0]) if numbers else np.zeros(m.L)
    for o in numbers[1:]:
        total = total + f64(m, o)
    put_wide(m, ins, g, ins.operands[0], np.asarray(total, F64).view(U64))


@op("DMUL")
def dmul(m: Machine, ins: Instruction, g: Group) -> None:
    put_wide(m, ins, g, ins.operands[0], np.asarray(f64(m, ins.operands[1]) * f64(m, ins.operands[2])).view(U64))


@op("DFMA")
def dfma(m: Machine, ins: Instruction, g: Group) -> None:
    a, b, c = (f64(m, o) for o in ins.operands[1:4])
    put_wide(m, ins, g, ins.operands[0], np.asarray(a * b + c).view(U64))


@op("I2F", "I2FP", "UI2F", "UI2FP")
def i2f(m: Machine, ins: Instruction, g: Group) -> None:
    d, a = ins.operands
    if "S64" in ins.mods or "U64" in ins.mods:
        x = np.asarray(wide(m, a))
        x = x.view(I64) if "S64" in ins.mods else x
    else:
        bits = next((t for t in ins.mods if re.fullmatch(r"[US](8|16)", t)), "")
        x = u32(m, a) if "U32" in ins.mods or bits else i32(m, a)
        x = x & U32((1 << int(bits[1:])) - 1) if bits else x
    if "F64" in ins.mods:
        return put_wide(m, ins, g, d, np.asarray(x).astype(F64).view(U64))
    return put_f32(m, ins, g, d, np.asarray(x).astype(F32))


@op("F2I", "UF2I")
def f2i(m: Machine, ins: Instruction, g: Group) -> None:
    d, a = ins.operands
    x = f64(m, a) if "F64" in ins.mods else f32(m, a).astype(F64)
    x = np.nan_to_num(x, nan=0.0, posinf=2.0**63, neginf=-(2.0**63))
    x = np.trunc(x) if "TRUNC" in ins.mods else np.floor(x) if "FLOOR" in ins.mods else np.rint(x)
    if "U64" in ins.mods:
        return put_wide(m, ins, g, d, np.clip(x, 0, 2.0**63).astype(U64))
    if "S64" in ins.mods:
        return put_wide(m, ins, g, d, np.clip(x, -(2.0**62), 2.0**62).astype(I64).astype(U64))
    low, high = (0, 2**32 - 1) if "U32" in ins.mods else (-(2**31), 2**31 - 1)
    return put(m, ins, g, d, np.clip(x, low, high).astype(I64).astype(U32))


@op("F2F")
def f2f(m: Machine, ins: Instruction, g: Group) -> None:
    d, a = ins.operands
    if ins.mods[:2] == ("F64", "F32"):
        return put_wide(m, ins, g, d, np.asarray(f32(m, a)).astype(F64).view(U64))
    if ins.mods[:2] == ("F32", "F64"):
        return put_f32(m, ins, g, d, np.asarray(f64(m, a)).astype(F32))
    raise NotImplementedError(ins.text)


def to_bf16(x: Any) -> Any:
    bits = np.asarray(x, F32).view(U32)
    rounded = (bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), rounded)


def from_bf16(bits: Any) -> Any:
    return (np.asarray(bits).astype(U32) << U32(16)).view(F32)


def to_half(x: Any, brain: bool) -> Any:
    return to_bf16(x) if brain else np.asarray(x).astype(np.float16).view(np.uint16).astype(U32)


def from_half(bits: Any, brain: bool) -> Any:
    return from_bf16(bits) if brain else np.asarray(bits).astype(np.uint16).view(np.float16).astype(F32)


@op("F2FP", "UF2FP")
def f2fp(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b = ins.operands[:3]
    brain = "BF16" in ins.mods
    x, y = f32(m, a), f32(m, b)
    if "RELU" in ins.mods:
        x, y = np.maximum(x, 0), np.maximum(y, 0)
    put(m, ins, g, d, to_half(x, brain) << U32(16) | to_half(y, brain))


def halves(m: Machine, o: Operand, brain: bool) -> tuple[Any, Any]:
    """Lower and upper number of a packed operand."""
    if o.kind == "imm" and "0x" not in o.text:
        x = F32(literal(o.text))
        return x, x
    bits = np.asarray(raw(m, o))
    low, high = from_half(bits & U32(0xFFFF), brain), from_half(bits >> U32(16), brain)
    if o.half in ("H0_H0", "H0"):
        high = low
    elif o.half in ("H1_H1", "H1"):
        low = high
    if o.absolute:
        low, high = np.abs(low), np.abs(high)
    return (-low, -high) if o.negative else (low, high)


@op("HADD2", "HMUL2", "HFMA2", "HMNMX2", "VHMNMX", "HFMA2_MMA")
def half2(m: Machine, ins: Instruction, g: Group) -> None:
    d, rest = ins.operands[0], ins.operands[1:]
    brain = any(t.startswith("BF16") for t in ins.mods)
    if len(rest) >= 3 and rest[-1].kind == "imm" and rest[-2].kind == "imm":  # a literal of two numbers, upper first
        upper, lower = (F32(literal(o.text)) for o in rest[-2:])
        numbers = [*(halves(m, o, brain) for o in rest[:-2]), (lower, upper)]
    else:
        numbers = [halves(m, o, brain) for o in rest if not is_pred(o)]
    if ins.op in ("HMNMX2", "VHMNMX"):  # of two, of three
        p = pred(m, next(o for o in rest if is_pred(o)))
        low, high = (np.minimum, np.maximum) if "NAN" in ins.mods else (np.fmin, np.fmax)
        values = [np.where(p, reduce(low, x), reduce(high, x)) for x in zip(*numbers, strict=True)]
    elif ins.op == "HADD2":
        values = [x + y for x, y in zip(*numbers, strict=True)]
        if "F32" in ins.mods:
            return put_f32(m, ins, g, d, values[0])
    elif ins.op == "HMUL2":
        values = [x * y for x, y in zip(*numbers, strict=True)]
    else:
        values = [(np.asarray(x, F64) * y + z).astype(F32) for x, y, z in zip(*numbers, strict=True)]
    low_half, high_half = (to_half(v, brain) for v in values)
    return put(m, ins, g, d, low_half | high_half << U32(16))


@op("HSETP2")
def hsetp2(m: Machine, ins: Instruction, g: Group) -> None:
    d, d2, a, b, c = ins.operands[:5]
    brain = any(t.startswith("BF16") for t in ins.mods)
    kind = next(t for t in ins.mods if t in COMPARE or t.removesuffix("U") in COMPARE or t in ("NAN", "NUM"))
    x, y = halves(m, a, brain), halves(m, b, brain)
    results = [logical(bool_mod(ins), compare_floats(kind, p, q), pred(m, c)) for p, q in zip(x, y, strict=True)]
    if "H_AND" in ins.text:
        results = [results[0] & results[1]] * 2
    put_pred(m, ins, g, d, results[0])
    put_pred(m, ins, g, d2, results[1])


@op("HSET2")
def hset2(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b, c = ins.operands[:4]
    brain = any(t.startswith("BF16") for t in ins.mods)
    kind = next(t for t in ins.mods if t in COMPARE or t.removesuffix("U") in COMPARE or t in ("NAN", "NUM"))
    x, y = halves(m, a, brain), halves(m, b, brain)
    one = U32(0x3F80 if brain else 0x3C00) if "BF" in ins.mods else U32(0xFFFF)
    low, high = (
        np.where(logical(bool_mod(ins), compare_floats(kind, p, q), pred(m, c)), one, U32(0))
        for p, q in zip(x, y, strict=True)
    )
    put(m, ins, g, d, low | high << U32(16))
