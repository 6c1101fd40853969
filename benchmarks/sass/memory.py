"""Exchange between lanes, memory, matrix units."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.sass.floats import from_half
from benchmarks.sass.machine import WARP, Group, Machine
from benchmarks.sass.operands import F32, I32, I64, U32, U64, Lanes, is_pred, op, pred, put, put_f32, put_pred, raw, u32
from benchmarks.sass.program import RZ, Instruction, Operand


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


def fetched(ins: Instruction) -> int:
    """Bytes that the second-level cache asks of DRAM around an access: 64 where the instruction says nothing."""
    said = next((t for t in ins.mods if t.startswith("LTC")), "LTC64B")
    return int(said[3:-1])


@op("LDG", "LD")  # LD: parameters of a kernel are not met, its tensors are
def ldg(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    target, place = [o for o in ins.operands if not is_pred(o)][:2]
    address = address_of(m, place).astype(U64)
    level = m.note(address, active, size, fetch=fetched(ins))
    spread(m, ins, g, target, m.load(address, active, size))
    m.arrive(ins, g, m.memory_latency(level, g))


@op("STG", "ST")
def stg(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    place, source = ins.operands[:2]
    address = address_of(m, place).astype(U64)
    m.note(address, active, size, "written")
    m.occupy(g)
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
    m.arrive(ins, g, m.shared_latency(g))


@op("STS")
def sts(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    place, source = ins.operands[:2]
    index = m.shared_index(address_of(m, place), active, size)[active]
    m.shared_latency(g)
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
    m.arrive(ins, g, m.shared_latency(g))
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


@op("MOVM")
def movm(m: Machine, ins: Instruction, g: Group) -> None:
    """An 8 x 8 matrix of 16-bit numbers, two in a lane, turned over."""
    source, lane = ins.operands[1], np.arange(WARP)
    pairs = m.R[source.index if source.index != RZ else RZ].reshape(-1, WARP)
    halves = np.stack([pairs & U32(0xFFFF), pairs >> U32(16)], axis=-1).reshape(-1, 8, 8)  # [warp, row, column]
    low, high = halves[:, lane % 4 * 2, lane // 4], halves[:, lane % 4 * 2 + 1, lane // 4]
    put(m, ins, g, ins.operands[0], (low | high << U32(16)).reshape(-1))


@op("STSM")
def stsm(m: Machine, ins: Instruction, g: Group) -> None:
    active = m.guarded(ins, g)
    count = int(ins.mods[-1]) if ins.mods[-1] in ("1", "2", "4") else 1
    place, source = ins.operands[:2]
    rows = m.shared_index(address_of(m, place), active, 16).reshape(-1, WARP)
    m.shared_latency(g)
    lane = np.arange(WARP)
    whole = active.reshape(-1, WARP).any(1)  # a warp stores together
    for k in range(count):
        value = m.R[source.index + k].reshape(-1, WARP)[whole]
        if any("MT" in t for t in ins.mods):
            for half in range(2):
                at = (rows[whole][:, 8 * k + lane % 4 * 2 + half] >> 1) + lane // 4
                m.shared.view(np.uint16)[at] = (value >> U32(16 * half)).astype(np.uint16)
        else:
            m.shared.view(U32)[(rows[whole][:, 8 * k + lane // 4] >> 2) + lane % 4] = value


@op("LDGSTS")
def ldgsts(m: Machine, ins: Instruction, g: Group) -> None:
    active, size = m.guarded(ins, g), width(ins)
    to, place = ins.operands[:2]
    address = address_of(m, place).astype(U64)
    asked = active  # without the predicate a lane writes zeros
    if len(ins.operands) > 2 and is_pred(ins.operands[2]):
        asked = active & pred(m, ins.operands[2])
    level = m.note(address, asked, size, "past" if "BYPASS" in ins.mods else "read", fetched(ins))
    index = m.shared_index(address_of(m, to), active, size)[active]
    words = m.load(address, asked, size)
    for k, v in enumerate(words):
        m.shared.view(U32)[(index >> 2) + k] = v[active]
    at = g.warp_at
    m.copy_ready[at] = np.maximum(m.copy_ready[at], m.now + m.memory_latency(level, g))


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
