"""Operands of SASS instructions, read from and written to the registers of all lanes; and who executes which."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.sass.machine import Group, Machine
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
        raise NotImplementedError(f"{ins.op} is not known here: {ins.text}; add it to benchmarks/sass")
    return call


def literal(text: str) -> float:
    return float(text.replace("QNAN", "nan").replace("SNAN", "nan").replace("INF", "inf"))


def constant(m: Machine, o: Operand, words: int = 1) -> list[Any]:
    bank, register = o.terms
    if bank != 0:
        raise NotImplementedError(f"constant bank {bank}: {o.text}")
    if register and register not in ("RZ", "URZ"):
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
