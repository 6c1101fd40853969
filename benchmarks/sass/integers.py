"""Integers, bits, predicates and constants."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.sass.machine import Group, Machine
from benchmarks.sass.operands import (
    F64,
    I32,
    I64,
    LOW,
    U32,
    U64,
    constant,
    f32,
    i32,
    is_pred,
    op,
    pred,
    put,
    put_pred,
    put_wide,
    raw,
    u32,
    wide,
)
from benchmarks.sass.program import RZ, Instruction, Operand


def carries(ins: Instruction) -> tuple[list[Operand], list[Operand]]:
    """Predicates written after the result, and the other operands."""
    rest = ins.operands[1:]
    out = []
    while rest and is_pred(rest[0]):
        out.append(rest.pop(0))
    return out, rest


@op("IADD3", "UIADD3", "VIADD")
def add3(m: Machine, ins: Instruction, g: Group) -> None:
    out, rest = carries(ins)
    numbers = [o for o in rest if not is_pred(o)]
    if not out and "X" not in ins.mods:
        total = u32(m, numbers[0])
        for o in numbers[1:]:
            if not (o.kind == "R" and o.index == RZ):
                total = total + u32(m, o)
        return put(m, ins, g, ins.operands[0], total)
    total = U64(0)
    for o in numbers:
        if o.negative and o.kind != "imm":
            total = total + ((~raw(m, o)).astype(U64) + U64(1))
        else:
            total = total + u32(m, o).astype(U64)
    for o in rest:
        if is_pred(o):
            total = total + pred(m, o).astype(U64)
    put(m, ins, g, ins.operands[0], (total & LOW).astype(U32))
    for i, o in enumerate(out):
        put_pred(m, ins, g, o, (total >> U64(32)) > U64(i))
    return None


@op("IMAD", "UIMAD")
def imad(m: Machine, ins: Instruction, g: Group) -> None:
    out, rest = carries(ins)
    d, mods = ins.operands[0], ins.mods
    a, b, c = rest[:3]
    if "WIDE" in mods:
        if "U32" in mods:
            product = u32(m, a).astype(U64) * u32(m, b).astype(U64)
        else:
            product = (i32(m, a).astype(I64) * i32(m, b).astype(I64)).astype(U64)
        addend = wide(m, c) if c.kind != "imm" else U64(int(c.text, 0) & (1 << 64) - 1)
        total = product + addend
        if out:
            put_pred(m, ins, g, out[0], total < product)
        if len(rest) > 3:
            total = total + pred(m, rest[3]).astype(U64)
        return put_wide(m, ins, g, d, total)
    if "HI" in mods:
        if "U32" in mods:
            product = u32(m, a).astype(U64) * u32(m, b).astype(U64)
        else:
            product = (i32(m, a).astype(I64) * i32(m, b).astype(I64)).astype(U64)
        return put(m, ins, g, d, ((product + wide(m, c)) >> U64(32)).astype(U32))
    total = u32(m, c) if a.kind == "R" and a.index == RZ else u32(m, a) * u32(m, b) + u32(m, c)
    if "X" in mods:
        total = total + pred(m, rest[3]).astype(U32)
    return put(m, ins, g, d, total)


@op("LEA", "ULEA")
def lea(m: Machine, ins: Instruction, g: Group) -> None:
    out, rest = carries(ins)
    flags = [o for o in rest if is_pred(o)]
    numbers = [o for o in rest if not is_pred(o)]
    shift = U64(int(numbers[-1].text, 0))
    a = raw(m, numbers[0]).astype(U64)
    if "HI" in ins.mods:
        if "SX32" in ins.mods:
            a = np.asarray(i32(m, numbers[0])).astype(I64).astype(U64)
        else:
            a = a | raw(m, numbers[2]).astype(U64) << U64(32)
            if numbers[0].negative:
                a = U64(0) - a
        value = (a << shift) >> U64(32)
    else:
        value = (a << shift) & LOW
        if numbers[0].negative:
            value = (~value & LOW) + U64(1)
    b = numbers[1]
    total = value + ((~raw(m, b)).astype(U64) + U64(1) if b.negative and "X" not in ins.mods else u32(m, b).astype(U64))
    for o in flags:
        total = total + pred(m, o).astype(U64)
    put(m, ins, g, ins.operands[0], (total & LOW).astype(U32))
    if out:
        put_pred(m, ins, g, out[0], total >> U64(32) > U64(0))


@op("SHF", "USHF")
def shf(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, s, c = ins.operands
    by = u32(m, s).astype(U64)
    both = raw(m, a).astype(U64) | raw(m, c).astype(U64) << U64(32)
    is64 = "U64" in ins.mods or "S64" in ins.mods
    by = by & U64(63 if is64 else 31) if "W" in ins.mods else np.minimum(by, U64(63 if is64 else 32))
    high = "HI" in ins.mods
    if "L" in ins.mods:
        value = (both << by) >> (U64(32) if high else U64(0))
        if not is64 and high:
            value = np.where(by >= 32, raw(m, a).astype(U64), value)
    elif "S32" in ins.mods or "S64" in ins.mods:
        value = (np.asarray(both).view(I64) >> np.asarray(by).astype(I64)).view(U64)
        if high:
            value = value >> U64(32)
    else:
        value = both >> by
        if high:
            value = value >> U64(32)
    return put(m, ins, g, d, (value & LOW).astype(U32))


@op("LOP3", "ULOP3")
def lop3(m: Machine, ins: Instruction, g: Group) -> None:
    o = ins.operands
    start = 1 if is_pred(o[0]) else 0
    d = o[start]
    if is_pred(o[start + 1]):
        raise NotImplementedError(ins.text)
    a, b, c = (u32(m, x) for x in o[start + 1 : start + 4])
    lut = int(o[start + 4].text, 0)
    value = logic(lut, a, b, c)
    put(m, ins, g, d, value)
    if start:
        put_pred(m, ins, g, o[0], np.asarray(value) != 0)


def logic(lut: int, a: Any, b: Any, c: Any) -> Any:
    known = {0xC0: lambda: a & b, 0xFC: lambda: a | b, 0x3C: lambda: a ^ b, 0x33: lambda: ~b, 0x0F: lambda: ~a}
    if lut in known:
        return known[lut]()
    value: Any = None
    for bits in range(8):
        if lut >> bits & 1:
            term = (a if bits & 4 else ~a) & (b if bits & 2 else ~b) & (c if bits & 1 else ~c)
            value = term if value is None else value | term
    return U32(0) if value is None else value


@op("PLOP3", "UPLOP3")
def plop3(m: Machine, ins: Instruction, g: Group) -> None:
    d, d2, a, b, c, lut, lut2 = ins.operands[:7]
    values = [pred(m, x) for x in (a, b, c)]
    first, second = (logic(int(t.text, 0), *values) for t in (lut, lut2))
    put_pred(m, ins, g, d, np.asarray(first, bool))
    put_pred(m, ins, g, d2, np.asarray(second, bool))


@op("PRMT", "UPRMT")
def prmt(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, s, c = ins.operands
    both = raw(m, a).astype(U64) | raw(m, c).astype(U64) << U64(32)
    sel = u32(m, s)
    value = U32(0)
    for k in range(4):
        nibble = np.asarray(sel >> U32(4 * k)) & U32(15)
        byte = both >> (nibble & U32(7)).astype(U64) * U64(8) & U64(255)
        if (nibble & U32(8)).any():
            byte = np.where(nibble & U32(8) > 0, np.where(byte & U64(128) > 0, U64(255), U64(0)), byte)
        value = value | byte.astype(U32) << U32(8 * k)
    return put(m, ins, g, d, value)


@op("MOV", "UMOV", "R2UR", "S2R", "S2UR")
def mov(m: Machine, ins: Instruction, g: Group) -> None:
    put(m, ins, g, ins.operands[0], u32(m, ins.operands[-1]))


@op("CS2R")
def cs2r(m: Machine, ins: Instruction, g: Group) -> None:
    value = m.special(ins.operands[1].text)
    put(m, ins, g, ins.operands[0], value) if "32" in ins.mods else put_wide(m, ins, g, ins.operands[0], value)


@op("SEL", "USEL", "FSEL")
def sel(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b, p = ins.operands
    bits = (lambda o: np.asarray(f32(m, o)).view(U32)) if ins.op == "FSEL" else (lambda o: u32(m, o))
    put(m, ins, g, d, np.where(pred(m, p), bits(a), bits(b)))


@op("VIMNMX", "UVIMNMX", "IMNMX")
def vimnmx(m: Machine, ins: Instruction, g: Group) -> None:
    d, (a, b, p) = ins.operands[0], ins.operands[-3:]
    get = u32 if "U32" in ins.mods else i32
    x, y = get(m, a), get(m, b)
    put(m, ins, g, d, np.where(pred(m, p), np.minimum(x, y), np.maximum(x, y)).astype(I64).astype(U32))


@op("VIMNMX3")
def vimnmx3(m: Machine, ins: Instruction, g: Group) -> None:
    d, *three, p = ins.operands
    x, y, z = ((u32 if "U32" in ins.mods else i32)(m, v) for v in three)
    least, most = np.minimum(np.minimum(x, y), z), np.maximum(np.maximum(x, y), z)
    put(m, ins, g, d, np.where(pred(m, p), least, most).astype(I64).astype(U32))


@op("VIADDMNMX")
def viaddmnmx(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b, c, p = ins.operands
    total = np.asarray(u32(m, a) + u32(m, b))
    x, y = (total, u32(m, c)) if "U32" in ins.mods else (total.view(I32), i32(m, c))
    put(m, ins, g, d, np.where(pred(m, p), np.minimum(x, y), np.maximum(x, y)).astype(I64).astype(U32))


@op("IABS")
def iabs(m: Machine, ins: Instruction, g: Group) -> None:
    put(m, ins, g, ins.operands[0], np.abs(i32(m, ins.operands[1]).astype(I64)).astype(U32))


@op("SGXT")
def sgxt(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b = ins.operands
    left = U32(32) - np.minimum(u32(m, b), U32(32)).astype(U32)
    value = np.asarray(u32(m, a)).astype(I64) << np.asarray(left).astype(I64) & I64(0xFFFFFFFF)
    if "U32" not in ins.mods:
        value = value.astype(U32).view(I32).astype(I64)
    put(m, ins, g, d, (value >> np.asarray(left).astype(I64)).astype(U32))


@op("POPC", "UPOPC")
def popc(m: Machine, ins: Instruction, g: Group) -> None:
    v = np.asarray(u32(m, ins.operands[1]))
    put(m, ins, g, ins.operands[0], np.bitwise_count(v).astype(U32))


@op("FLO", "UFLO")
def flo(m: Machine, ins: Instruction, g: Group) -> None:
    v = np.asarray(u32(m, ins.operands[-1]))
    top = np.floor(np.log2(np.maximum(v, 1).astype(F64))).astype(U32)
    top = U32(31) - top if "SH" in ins.mods else top
    put(m, ins, g, ins.operands[0], np.where(v == 0, U32(0xFFFFFFFF), top))


@op("BREV")
def brev(m: Machine, ins: Instruction, g: Group) -> None:
    v = np.broadcast_to(np.asarray(u32(m, ins.operands[1])), (m.L,))
    out = np.zeros(m.L, U32)
    for k in range(32):
        out |= (v >> U32(k) & U32(1)) << U32(31 - k)
    put(m, ins, g, ins.operands[0], out)


COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    **{"EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater},
    "GE": np.greater_equal,
}


def logical(name: str, a: Any, b: Any) -> Any:
    return a & b if name == "AND" else a | b if name == "OR" else a ^ b


def bool_mod(ins: Instruction) -> str:
    return next(x for x in ins.mods if x in ("AND", "OR", "XOR"))


@op("ISETP", "UISETP")
def isetp(m: Machine, ins: Instruction, g: Group) -> None:
    d, d2, a, b, c, *rest = ins.operands
    get = u32 if "U32" in ins.mods else i32
    kind = ins.mods[0]
    x, y = get(m, a), get(m, b)
    value = np.full(m.L, kind == "T") if kind in ("T", "F") else COMPARE[kind](x, y)
    if "EX" in ins.mods:
        value = np.where(np.asarray(x) == y, pred(m, rest[0]), value)
    how, other = bool_mod(ins), pred(m, c)
    first, second = logical(how, value, other), logical(how, ~np.asarray(value), other)
    put_pred(m, ins, g, d, first)
    put_pred(m, ins, g, d2, second)


@op("P2R", "UP2UR")
def p2r(m: Machine, ins: Instruction, g: Group) -> None:
    d, _, a, mask = ins.operands
    file = m.P if ins.op == "P2R" else m.UP
    bits = np.zeros(m.L, U32)
    for k in range(7):
        bits |= file[k].astype(U32) << U32(k)
    by = next((8 * int(x[1]) for x in ins.mods if re.fullmatch(r"B\d", x)), 0) or (8 * int(d.half[1]) if d.half else 0)
    keep = U32(int(mask.text, 0))
    put(m, ins, g, d, (u32(m, a) & ~(keep << U32(by))) | (bits & keep) << U32(by))


@op("R2P", "UR2UP")
def r2p(m: Machine, ins: Instruction, g: Group) -> None:
    _, a, mask = ins.operands
    v, keep = np.broadcast_to(np.asarray(u32(m, a)), (m.L,)), int(mask.text, 0)
    for k in range(7):
        if keep >> k & 1:
            put_pred(m, ins, g, Operand("P" if ins.op == "R2P" else "UP", k), (v >> U32(k) & U32(1)) > 0)


@op("LDC", "ULDC")
def ldc(m: Machine, ins: Instruction, g: Group) -> None:
    d, c = ins.operands
    if "64" in ins.mods:
        low, high = constant(m, c, 2)
        put(m, ins, g, d, low)
        put(m, ins, g, Operand(d.kind, d.index + 1), high)
        return
    value = constant(m, c)[0]
    bits = next((x for x in ins.mods if x in ("U8", "S8", "U16", "S16")), "")
    if bits:
        value = value & U32(0xFF if bits[1:] == "8" else 0xFFFF)
    put(m, ins, g, d, value)
