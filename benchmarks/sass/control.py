"""Branches, calls and barriers."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.sass.machine import JUMPED, WARP, Group, Machine
from benchmarks.sass.operands import is_pred, op, pred
from benchmarks.sass.program import Instruction


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
