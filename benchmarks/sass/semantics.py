"""What each instruction of SASS does, as far as these kernels use it. An unknown one is an error, never a guess."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.sass.machine import DRAM_LATENCY, JUMPED, L1_LATENCY, WARP, Group, Machine
from benchmarks.sass.program import RZ, Instruction, Operand

Lanes = NDArray[Any]
Call = Callable[[Machine, Instruction, Group], Any]
OPS: dict[str, Call] = {}
U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
LOW = U64(0xFFFFFFFF)


def op(*names: str) -> Callable[[Call], Call]:
    def keep(call: Call) -> Call:
        OPS.update(dict.fromkeys(names, call))
        return call

    return keep


def compiled(ins: Instruction) -> Call:
    call = OPS.get(ins.op) or OPS.get(ins.op.removeprefix("U"))
    if call is None:
        raise NotImplementedError(f"{ins.op} is not known here: {ins.text}; add it to {__name__}")
    return call


# -- operands


def literal(text: str) -> float:
    return float(text.replace("QNAN", "nan").replace("SNAN", "nan").replace("INF", "inf"))


def constant(m: Machine, o: Operand, words: int = 1) -> list[Any]:
    bank, register = o.terms
    if bank != 0:
        raise NotImplementedError(f"constant bank {bank}: {o.text}")
    if register:
        index = m.U[int(register[2:])] if register[0] == "U" else m.R[int(register[1:])]
        table = np.frombuffer(m.constant[: len(m.constant) // 4 * 4], U32)
        return [table[np.minimum((index + U32(o.index)) // 4 + U32(k), table.size - 1)] for k in range(words)]
    return [U32(int.from_bytes(m.constant[o.index + 4 * k : o.index + 4 * k + 4], "little")) for k in range(words)]


def raw(m: Machine, o: Operand, upper: bool = False) -> Any:
    """32 bits without sign or complement."""
    if o.kind == "R":
        return m.R[o.index + 1 if upper and o.index != RZ else o.index]
    if o.kind == "U":
        return m.U[o.index + 1 if upper and o.index != 63 else o.index]
    if o.kind == "const":
        return constant(m, o, 2)[int(upper)]
    if o.kind == "imm":
        text = o.text
        value = int(text, 16) if "0x" in text else None
        if value is None:
            if re.fullmatch(r"-?\d+", text) and not upper:
                value = int(text)
            else:
                return np.array(literal(text), F32).view(U32)[()]
        return U32((value >> 32 if upper else value) & 0xFFFFFFFF)
    if o.kind == "special":
        return m.special(o.text)
    raise NotImplementedError(o.text)


def u32(m: Machine, o: Operand) -> Any:
    v = raw(m, o)
    if o.half:
        v = part(v, o.half)
    if o.inverse:
        v = ~v
    if o.kind != "imm":
        if o.absolute:
            v = np.abs(v.astype(I32)).astype(U32)
        if o.negative:
            v = (U32(0) - v) if isinstance(v, np.ndarray) else U32(-int(v) & 0xFFFFFFFF)
    return v


def part(v: Any, half: str) -> Any:
    if half.startswith("H1"):
        return v >> U32(16)
    if half.startswith("H0"):
        return v & U32(0xFFFF)
    return v >> U32(8 * int(half[1])) & U32(0xFF)


def i32(m: Machine, o: Operand) -> Any:
    v = u32(m, o)
    return v.view(I32) if isinstance(v, np.ndarray) else np.array(v).view(I32)[()]


def wide(m: Machine, o: Operand) -> Any:
    """64 bits of a pair of registers."""
    v = raw(m, o).astype(U64) | raw(m, o, True).astype(U64) << U64(32)
    if o.inverse:
        v = ~v
    return U64(0) - v if o.negative else v


def f32(m: Machine, o: Operand) -> Any:
    if o.kind == "imm" and "0x" not in o.text:
        return F32(literal(o.text))
    v = raw(m, o)
    v = v.view(F32) if isinstance(v, np.ndarray) else np.array(v).view(F32)[()]
    if o.absolute:
        v = np.abs(v)
    return -v if o.negative else v


def f64(m: Machine, o: Operand) -> Any:
    if o.kind == "imm":
        return F64(literal(o.text)) if "0x" not in o.text else np.array(U64(int(o.text, 16) << 32)).view(F64)[()]
    v = np.asarray(raw(m, o).astype(U64) | raw(m, o, True).astype(U64) << U64(32)).view(F64)
    if o.absolute:
        v = np.abs(v)
    return -v if o.negative else v


def pred(m: Machine, o: Operand) -> Lanes:
    v = (m.P if o.kind == "P" else m.UP)[o.index]
    return ~v if o.negative else v


def is_pred(o: Operand) -> bool:
    return o.kind in ("P", "UP")


def put(m: Machine, ins: Instruction, g: Group, o: Operand, value: Any) -> None:
    file, zero = (m.R, RZ) if o.kind == "R" else (m.U, 63)
    if o.index == zero:
        return
    if g.full and ins.guard is None:
        file[o.index] = value
    else:
        np.copyto(file[o.index], np.broadcast_to(np.asarray(value, U32), (m.L,)), where=m.guarded(ins, g))


def put_wide(m: Machine, ins: Instruction, g: Group, o: Operand, value: Any) -> None:
    value = np.asarray(value)
    if value.dtype != U64:
        value = value.view(U64) if value.dtype.itemsize == 8 else value.astype(U64)
    put(m, ins, g, o, (value & LOW).astype(U32))
    if o.index not in (RZ, 63 if o.kind == "U" else RZ):
        put(m, ins, g, Operand(o.kind, o.index + 1), (value >> U64(32)).astype(U32))


def put_f32(m: Machine, ins: Instruction, g: Group, o: Operand, value: Any) -> None:
    put(m, ins, g, o, np.asarray(value, F32).view(U32))


def put_pred(m: Machine, ins: Instruction, g: Group, o: Operand, value: Any) -> None:
    if o.index == 7:
        return
    file = m.P if o.kind == "P" else m.UP
    np.copyto(file[o.index], np.broadcast_to(value, (m.L,)), where=m.guarded(ins, g))


# -- integers


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


@op("VIADDMNMX")
def viaddmnmx(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b, c, p = ins.operands
    total = np.asarray(u32(m, a) + u32(m, b))
    x, y = (total, u32(m, c)) if "U32" in ins.mods else (total.view(I32), i32(m, c))
    put(m, ins, g, d, np.where(pred(m, p), np.minimum(x, y), np.maximum(x, y)).astype(I64).astype(U32))


@op("IABS")
def iabs(m: Machine, ins: Instruction, g: Group) -> None:
    put(m, ins, g, ins.operands[0], np.abs(i32(m, ins.operands[1]).astype(I64)).astype(U32))


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


# -- floating point


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


# -- conversions


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


@op("HADD2", "HMUL2", "HFMA2", "HMNMX2", "HFMA2_MMA")
def half2(m: Machine, ins: Instruction, g: Group) -> None:
    d, rest = ins.operands[0], ins.operands[1:]
    brain = any(t.startswith("BF16") for t in ins.mods)
    if len(rest) >= 3 and rest[-1].kind == "imm" and rest[-2].kind == "imm":  # a literal of two numbers, upper first
        upper, lower = (F32(literal(o.text)) for o in rest[-2:])
        numbers = [*(halves(m, o, brain) for o in rest[:-2]), (lower, upper)]
    else:
        numbers = [halves(m, o, brain) for o in rest if not is_pred(o)]
    if ins.op == "HMNMX2":
        p = pred(m, next(o for o in rest if is_pred(o)))
        low, high = (np.minimum, np.maximum) if "NAN" in ins.mods else (np.fmin, np.fmax)
        values = [np.where(p, low(x, y), high(x, y)) for x, y in zip(*numbers, strict=True)]
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


# -- between lanes


def by_warp(m: Machine, v: Any) -> Lanes:
    return np.broadcast_to(np.asarray(v), (m.L,)).reshape(-1, WARP)


@op("SHFL")
def shfl(m: Machine, ins: Instruction, g: Group) -> None:
    p, d, a, b, c = ins.operands
    lane = m.tid & U32(31)
    by, limit = np.broadcast_to(u32(m, b), (m.L,)), u32(m, c)
    clamp, segment = limit & U32(31), limit >> U32(8) & U32(31)
    base = lane & segment
    kind = ins.mods[0]
    if kind == "BFLY":
        source = lane ^ by
        inside = source <= (base | (clamp & ~segment))
    elif kind == "DOWN":
        source = lane + by
        inside = source <= (base | (clamp & ~segment))
    elif kind == "UP":
        source = (lane - by).astype(U32)
        inside = (
            source.view(I32) >= (base | clamp).view(I32)
            if isinstance(clamp, np.ndarray)
            else source.view(I32) >= base.view(I32)
        )
    else:
        source = base | (by & ~segment)
        inside = source <= (base | (clamp & ~segment))
    source = np.where(inside, source, lane) & U32(31)
    rows = by_warp(m, raw(m, a))
    value = np.take_along_axis(rows, source.reshape(-1, WARP).astype(np.int64), 1).reshape(-1)
    put(m, ins, g, d, value)
    put_pred(m, ins, g, p, inside)


@op("VOTE", "VOTEU")
def vote(m: Machine, ins: Instruction, g: Group) -> None:
    active = m.guarded(ins, g)
    source = pred(m, ins.operands[-1])
    rows = (source & active).reshape(-1, WARP)
    bits = (rows.astype(U32) << np.arange(WARP, dtype=U32)).sum(1, dtype=U64).astype(U32)
    total = rows.any(1) if "ANY" in ins.mods else (rows | ~active.reshape(-1, WARP)).all(1)
    for o in ins.operands[:-1]:
        if is_pred(o):
            put_pred(m, ins, g, o, np.repeat(total, WARP))
        else:
            put(m, ins, g, o, np.repeat(bits, WARP))


@op("REDUX", "CREDUX")
def redux(m: Machine, ins: Instruction, g: Group) -> None:
    d, a = ins.operands[0], ins.operands[-1]
    active = m.guarded(ins, g).reshape(-1, WARP)
    signed = "S32" in ins.mods
    v = by_warp(m, u32(m, a))
    v = v.view(I32) if signed else v
    kind = next((t for t in ins.mods if t in ("MAX", "MIN", "SUM", "OR", "AND", "XOR")), "SUM")
    neutral = {"MAX": np.iinfo(v.dtype).min, "MIN": np.iinfo(v.dtype).max, "AND": np.iinfo(v.dtype).max}.get(kind, 0)
    rows = np.where(active, v, v.dtype.type(neutral))
    fold = {"MAX": np.maximum, "MIN": np.minimum, "SUM": np.add, "OR": np.bitwise_or, "AND": np.bitwise_and}
    total = {**fold, "XOR": np.bitwise_xor}[kind].reduce(rows, axis=1)
    put(m, ins, g, d, np.repeat(np.asarray(total, v.dtype), WARP).view(U32))


@op("MATCH")
def match(m: Machine, ins: Instruction, g: Group) -> None:
    raise NotImplementedError(ins.text)


# -- memory


def address_of(m: Machine, o: Operand) -> Lanes:
    terms, offset = o.terms
    total = np.full(m.L, offset, I64)
    for kind, index, scale in terms:
        file, zero = (m.R, RZ) if kind[0] == "R" else (m.U, 63)
        if index == zero:
            continue
        v = file[index].astype(I64)
        if kind.endswith("64"):
            v = v | file[index + 1].astype(I64) << I64(32)
        total = total + v * scale
    return total


def width(ins: Instruction) -> int:
    for t in ins.mods:
        if t in ("128", "64"):
            return int(t) // 8
        if t in ("U16", "S16", "16"):
            return 2
        if t in ("U8", "S8", "8"):
            return 1
    return 4


def spread(m: Machine, ins: Instruction, g: Group, d: Operand, words: list[Lanes]) -> None:
    if d.index == RZ:
        return
    for k, v in enumerate(words):
        if "S16" in ins.mods:
            v = v.astype(np.uint16).view(np.int16).astype(I32).view(U32)
        if "S8" in ins.mods:
            v = v.astype(np.uint8).view(np.int8).astype(I32).view(U32)
        put(m, ins, g, Operand("R", d.index + k), v)


def global_latency(m: Machine, first: Lanes, g: Group) -> Any:
    """DRAM where a warp touches something new of a tensor that the cache does not hold, else a cache."""
    fresh = first.reshape(-1, WARP).any(1)[g.warp_at]
    return np.where(fresh, DRAM_LATENCY, L1_LATENCY)


@op("LDG")
def ldg(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    target, place = [o for o in ins.operands if not is_pred(o)][:2]
    address = address_of(m, place).astype(U64)
    first = m.note(address, active, size)
    spread(m, ins, g, target, m.load(address, active, size))
    m.arrive(ins, g, global_latency(m, first, g))


@op("STG")
def stg(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    place, source = ins.operands[:2]
    address = address_of(m, place).astype(U64)
    m.note(address, active, size)
    if m.exact:  # else what an op has freed again would be written
        words = [m.R[source.index + k if source.index != RZ else RZ] for k in range(max(1, size // 4))]
        m.store(address, active, words, size)


def shared_read(m: Machine, index: Lanes, size: int) -> list[Lanes]:
    if size < 4:
        value = m.shared[index].astype(U32)
        return [value | m.shared[index + 1].astype(U32) << U32(8)] if size == 2 else [value]
    words = m.shared.view(U32)
    return [words[(index >> 2) + k] for k in range(size // 4)]


@op("LDS")
def lds(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    index = m.shared_index(address_of(m, ins.operands[1]), active, size)
    spread(m, ins, g, ins.operands[0], shared_read(m, index, size))


@op("STS")
def sts(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    place, source = ins.operands[:2]
    index = m.shared_index(address_of(m, place), active, size)[active]
    value = [m.R[source.index + k if source.index != RZ else RZ][active] for k in range(max(1, size // 4))]
    if size < 4:
        for k in range(size):
            m.shared[index + k] = (value[0] >> U32(8 * k)).astype(np.uint8)
    else:
        for k, v in enumerate(value):
            m.shared.view(U32)[(index >> 2) + k] = v


@op("LDSM")
def ldsm(m: Machine, ins: Instruction, g: Group) -> None:
    active = m.guarded(ins, g)
    count = int(ins.mods[-1]) if ins.mods[-1] in ("1", "2", "4") else 1
    index = m.shared_index(address_of(m, ins.operands[1]), active, 16)
    rows = index.reshape(-1, WARP)
    lane = np.arange(WARP)
    words = m.shared.view(np.uint16)
    for k in range(count):
        if any("MT" in t for t in ins.mods):
            lows = words[(rows[:, 8 * k + lane % 4 * 2] >> 1) + lane // 4]
            highs = words[(rows[:, 8 * k + lane % 4 * 2 + 1] >> 1) + lane // 4]
            value = lows.astype(U32) | highs.astype(U32) << U32(16)
        else:
            value = m.shared.view(U32)[(rows[:, 8 * k + lane // 4] >> 2) + lane % 4]
        put(m, ins, g, Operand("R", ins.operands[0].index + k), value.reshape(-1))


@op("LDGSTS")
def ldgsts(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    to, place = ins.operands[:2]
    address = address_of(m, place).astype(U64)
    zero = ins.operands[2] if len(ins.operands) > 2 and is_pred(ins.operands[2]) else None
    first = m.note(address, active, size)
    index = m.shared_index(address_of(m, to), active, size)[active]
    words = m.load(address, active & ~pred(m, zero) if zero is not None and zero.index != 7 else active, size)
    for k, v in enumerate(words):
        m.shared.view(U32)[(index >> 2) + k] = v[active]
    at = g.warp_at
    m.copy_ready[at] = np.maximum(m.copy_ready[at], m.now + global_latency(m, first, g))


@op("LDGDEPBAR")
def ldgdepbar(m: Machine, ins: Instruction, g: Group) -> None:
    m.copies.append(m.copy_ready.copy())


@op("DEPBAR")
def depbar(m: Machine, ins: Instruction, g: Group) -> None:
    left = int(ins.operands[1].text, 0) if len(ins.operands) > 1 else 0
    done = m.copies[: max(0, len(m.copies) - left)]
    if done:
        at = g.warp_at
        m.clock[at] = np.maximum(m.clock[at], np.maximum.reduce(done)[at])
        m.copies = m.copies[len(m.copies) - left :] if left else []


@op("LDL", "STL")
def local(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    place, other = (ins.operands[1], ins.operands[0]) if ins.op == "LDL" else ins.operands[:2]
    index = np.where(active, address_of(m, place), 0) >> 2
    table = m.local.view(U32)
    lanes = np.arange(m.L)
    if ins.op == "LDL":
        spread(m, ins, g, other, [table[lanes, index + k] for k in range(max(1, size // 4))])
    else:
        for k in range(max(1, size // 4)):
            table[lanes[active], index[active] + k] = m.R[other.index + k if other.index != RZ else RZ][active]


@op("ATOMG", "ATOM", "RED", "REDG")
def atomic(m: Machine, ins: Instruction, g: Group) -> None:
    active = m.guarded(ins, g)
    place = next(o for o in ins.operands if o.kind == "mem")
    address = address_of(m, place).astype(U64)
    m.note(address, active, 4)
    old = m.load(address, active, 4)[0]
    if m.exact:
        raise NotImplementedError(ins.text)
    if ins.op.startswith("ATOM"):
        target = next(o for o in ins.operands if o.kind == "R")
        put(m, ins, g, target, old)


# -- matrix units


@op("HMMA")
def hmma(m: Machine, ins: Instruction, g: Group) -> None:
    d, a, b, c = ins.operands[:4]
    if not m.exact:  # nothing that decides the way of a kernel depends on a product
        for k in range(4):
            put(m, ins, g, Operand("R", d.index + k), m.R[c.index + k if c.index != RZ else RZ])
        return
    shape = ins.mods[0]
    lane = np.arange(WARP)
    row, pair = lane // 4, lane % 4
    depth = {"16816": 16, "1688": 8, "1684": 4}[shape]
    W = m.L // WARP
    A, B = np.zeros((W, 16, depth), F32), np.zeros((W, depth, 8), F32)
    tf32 = "TF32" in ins.mods
    brain = "BF16" in ins.mods

    def register(o: Operand, k: int) -> Lanes:
        return m.R[o.index + k if o.index != RZ else RZ].reshape(W, WARP)

    if tf32:
        cut = U32(0xFFFFE000)
        for k in range(2 * depth // 4):
            A[:, row + 8 * (k % 2), pair + 4 * (k // 2)] = (register(a, k) & cut).view(F32)
        for k in range(depth // 4):
            B[:, pair + 4 * k, row] = (register(b, k) & cut).view(F32)
    else:
        for k in range(4 if depth == 16 else 2):
            bits = register(a, k)
            for half in (0, 1):
                number = from_half(bits >> U32(16 * half) & U32(0xFFFF), brain)
                A[:, row + 8 * (k % 2), 2 * pair + half + 8 * (k // 2)] = number
        for k in range(depth // 8):
            bits = register(b, k)
            for half in (0, 1):
                B[:, 2 * pair + half + 8 * k, row] = from_half(bits >> U32(16 * half) & U32(0xFFFF), brain)
    product = np.matmul(A, B)
    for k in range(4):
        value = product[:, row + 8 * (k // 2), 2 * pair + k % 2].reshape(-1)
        addend = m.R[c.index + k if c.index != RZ else RZ].view(F32)
        put_f32(m, ins, g, Operand("R", d.index + k), value + addend)


# -- control


@op("NOP", "MEMBAR", "ERRBAR", "CCTL", "FENCE", "YIELD", "NANOSLEEP", "ENDCOLLECTIVE", "DEPBAR_", "PMTRIG", "CCTLL")
def nothing(m: Machine, ins: Instruction, g: Group) -> None:
    return None


@op("BRA")
def bra(m: Machine, ins: Instruction, g: Group) -> Any:
    if "DIV" in ins.mods:  # where lanes of a warp are apart; they never are at a full-warp instruction
        return None
    target = ins.operands[-1].index
    taken = m.guarded(ins, g)
    for o in ins.operands[:-1]:
        if is_pred(o):
            taken = taken & pred(m, o)
    count = int(taken.sum())
    if count == 0:
        return None
    if count == g.lanes:
        g.pc = target
        return JUMPED
    return [Group(m, target, taken), Group(m, ins.at + 16, g.mask & ~taken)]


@op("BRX", "BRXU", "JMX")
def brx(m: Machine, ins: Instruction, g: Group) -> Any:
    raise NotImplementedError(ins.text)


@op("EXIT")
def leave(m: Machine, ins: Instruction, g: Group) -> Any:
    taken = m.guarded(ins, g)
    m.gone |= taken
    return [Group(m, ins.at + 16, g.mask & ~taken)]


@op("BSSY")
def bssy(m: Machine, ins: Instruction, g: Group) -> None:
    key = ins.operands[0].index
    mine = g.mask
    if key in m.B:
        warps = np.repeat(mine.reshape(-1, WARP).any(1), WARP)
        m.B[key] = np.where(warps, mine, m.B[key])
    else:
        m.B[key] = mine.copy()


@op("BREAK")
def leave_barrier(m: Machine, ins: Instruction, g: Group) -> Any:
    key = next(o for o in ins.operands if o.kind == "barrier").index
    m.B[key] = m.B[key] & ~m.guarded(ins, g)
    freed = m.release()
    return [Group(m, ins.at + 16, g.mask), *freed] if freed else None


@op("BSYNC")
def bsync(m: Machine, ins: Instruction, g: Group) -> Any:
    key = next(o for o in ins.operands if o.kind == "barrier").index
    need = m.B[key] & ~m.gone
    warps = np.repeat(g.mask.reshape(-1, WARP).any(1), WARP)
    if not (need & warps & ~g.mask).any():
        return None
    m.waiting.append((key, ins.at, g.mask))
    return []


@op("BMOV")
def bmov(m: Machine, ins: Instruction, g: Group) -> None:
    d, a = ins.operands
    saved = m.__dict__.setdefault("saved_barriers", {})
    if a.kind == "barrier":
        saved[d.index] = m.B.get(a.index, np.zeros(m.L, bool)).copy()
    else:
        mine = saved.get(a.index, np.zeros(m.L, bool))
        warps = np.repeat(g.mask.reshape(-1, WARP).any(1), WARP)
        m.B[d.index] = np.where(warps, mine, m.B.get(d.index, mine))


@op("WARPSYNC")
def warpsync(m: Machine, ins: Instruction, g: Group) -> Any:
    if "ALL" not in ins.mods and "COLLECTIVE" not in ins.mods and ins.operands[-1].kind != "R":
        raise NotImplementedError(ins.text)
    warps = np.repeat(g.mask.reshape(-1, WARP).any(1), WARP)
    if not (warps & ~m.gone & ~g.mask).any():
        return None
    m.waiting.append(("warp", ins.at, g.mask))
    return []


@op("BAR")
def bar(m: Machine, ins: Instruction, g: Group) -> Any:
    if "SYNC" not in ins.mods:
        raise NotImplementedError(ins.text)
    if not (~m.gone & ~g.mask).any():
        m.meet(g.mask)
        return None
    m.waiting.append(("block", ins.at, g.mask))
    return []


@op("CALL")
def call(m: Machine, ins: Instruction, g: Group) -> Any:
    return bra(m, ins, g)


@op("RET")
def ret(m: Machine, ins: Instruction, g: Group) -> Any:
    o = next(o for o in ins.operands if o.kind == "R")
    taken = m.guarded(ins, g)
    to = m.R[o.index]
    groups = [Group(m, int(t), taken & (to == t)) for t in np.unique(to[taken])]
    return [*groups, Group(m, ins.at + 16, g.mask & ~taken)]
