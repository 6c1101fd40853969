"""Blocks of threads that execute a parsed kernel in lockstep where they agree, with a clock for every warp.

All lanes of the sampled blocks are columns of one register array. Lanes at the lowest address go first; lanes that
wait (for their warp, for their block) are set aside until those they wait for have come.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.sass.host import HostMemory, Lanes, Memory, Traffic
from benchmarks.sass.program import Instruction, Program

WARP = 32
SECTOR = 32
LINE = 4  # sectors
SHARED_WINDOW = 1024  # sm_90 keeps the first kilobyte of a block's shared memory
PARAMETERS = 0x210  # where the arguments start in constant bank 0 (sm_90)


@dataclass
class Launch:
    """One launch as the host code made it. `arguments`: the bytes that the kernel reads."""

    kernel: str
    grid: tuple[int, int]
    threads: int
    shared_bytes: int
    arguments: bytes


class TooLongError(RuntimeError):
    """A limit of steps was reached."""


JUMPED: Any = object()  # an instruction that has set the address of its group


class Group:
    """Lanes at one address."""

    __slots__ = ("full", "lanes", "mask", "pc", "warp_at", "warps")

    def __init__(self, machine: Machine, pc: int, mask: Lanes) -> None:
        self.pc, self.mask = pc, mask
        self.lanes = int(mask.sum())
        self.full = self.lanes == machine.L
        some = mask.reshape(-1, WARP).any(1)
        self.warps = int(some.sum())
        self.warp_at: Any = slice(None) if self.warps == some.size else np.flatnonzero(some)


class Machine:
    """`blocks`: the (x, y) of the sampled blocks."""

    def __init__(
        self,
        program: Program,
        launch: Launch,
        blocks: list[tuple[int, int]],
        buffers: list[tuple[int, int]],
        exact: bool = False,
        bandwidth: float = 18.3,
        sharers: int = 1,
        near: int = 1 << 17,
        far: int = 1 << 18,
    ) -> None:
        from benchmarks.sass import control, floats, integers, memory  # noqa: F401 each registers its instructions
        from benchmarks.sass.operands import compiled

        self.program, self.launch, self.blocks = program, launch, blocks
        self.exact = exact  # products of the matrix units and stores too
        self.T = T = launch.threads
        self.L = L = T * len(blocks)
        self.R = np.zeros((256, L), np.uint32)
        self.U = np.zeros((64, L), np.uint32)
        self.P = np.zeros((8, L), bool)
        self.UP = np.zeros((8, L), bool)
        self.P[7] = self.UP[7] = True
        self.B: dict[int, Lanes] = {}  # convergence barriers: the lanes of each warp that will meet there
        self.tid = np.tile(np.arange(T, dtype=np.uint32), len(blocks))
        self.block = np.repeat(np.arange(len(blocks)), T)
        self.ctaid = [np.repeat(np.array([b[i] for b in blocks], np.uint32), T) for i in (0, 1)]
        self.shared_size = (SHARED_WINDOW + launch.shared_bytes + 16 * 1024 + 15) // 16 * 16
        self.shared = np.zeros(self.shared_size * len(blocks), np.uint8)
        self.local = np.zeros((L, 1024), np.uint8)
        constant = bytearray(PARAMETERS + len(launch.arguments) + 64)
        for at, value in ((0, T), (4, 1), (8, 1), (0xC, launch.grid[0]), (0x10, launch.grid[1]), (0x14, 1)):
            constant[at : at + 4] = int(value).to_bytes(4, "little")
        constant[0x28:0x2C] = (1024).to_bytes(4, "little")
        constant[PARAMETERS : PARAMETERS + len(launch.arguments)] = launch.arguments
        self.constant = bytes(constant)
        self.host = HostMemory()
        self.buffers = sorted(buffers)
        self.bases = np.array([b for b, _ in self.buffers] or [0], np.uint64)
        # what a block had asked for, in bytes, when a sector came to the first- and to the second-level cache
        self.stamps = {b: np.full((2, (size // SECTOR // 8 + 2) * 8), -1, np.int64) for b, size in self.buffers}
        self.when = {
            b: np.full(size // 128 + 8, -np.inf, np.float32) for b, size in self.buffers
        }  # a line was asked for
        self.asked = np.zeros(len(blocks), np.int64)
        self.near, self.far = near, far  # bytes of the two caches that a block may call its own
        self.memory = Memory()
        self.bandwidth = bandwidth  # bytes a cycle from DRAM for a block
        self.sharers = sharers  # blocks of a multiprocessor
        self.shared_queue = np.zeros(len(blocks))
        self.queue = np.zeros(len(blocks))  # when the last of them will be there
        W = L // WARP
        self.clock = np.zeros(W)
        self.boards = np.zeros((6, W))
        self.copies: list[Lanes] = []  # ready times of asynchronous copies, by commit
        self.copy_ready = np.zeros(W)
        self.code = program.code
        for ins in self.code:
            if ins.call is None:
                ins.call = compiled(ins)
            ins.threads = ins.warps = 0
        self.steps = 0

    # -- run

    def run(self, limit: int = 3_000_000) -> None:
        groups = [Group(self, 0, np.ones(self.L, bool))]
        self.waiting: list[tuple[Any, int, Lanes]] = []  # (key, pc, mask)
        self.gone = np.zeros(self.L, bool)
        code = self.code
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            while groups or self.waiting:
                if not groups:
                    groups = self.release(force=True)
                groups.sort(key=lambda g: g.pc)
                group = groups.pop(0)
                while groups and groups[0].pc == group.pc:
                    group = Group(self, group.pc, group.mask | groups.pop(0).mask)
                stop = groups[0].pc if groups else 1 << 60
                while True:
                    ins = code[group.pc >> 4]
                    self.steps += 1
                    ins.threads += group.lanes
                    ins.warps += group.warps
                    self.time(ins, group)
                    new = ins.call(self, ins, group)
                    if new is None:
                        group.pc += 16
                    elif new is not JUMPED:
                        groups += [g for g in new if g.lanes]
                        groups += self.release()
                        break
                    if group.pc >= stop:
                        groups.append(group)
                        break
                if self.steps > limit:
                    raise TooLongError(f"{self.program.name}: more than {limit} steps")

    def release(self, force: bool = False) -> list[Group]:
        """Lanes whose barrier is complete."""
        if not self.waiting:
            return []
        here: dict[Any, Lanes] = {}
        for key, _, mask in self.waiting:
            here[key] = here[key] | mask if key in here else mask
        go: dict[Any, Lanes] = {}
        for key, arrived in here.items():
            width = self.T if key == "block" else WARP
            need = ~self.gone if key in ("block", "warp") else self.B[key] & ~self.gone
            stuck = (need & ~arrived).reshape(-1, width).any(1)
            go[key] = arrived & ~np.repeat(stuck, width)
        if "block" in go and go["block"].any():
            self.meet(go["block"])
        ready, kept = [], []
        for key, pc, mask in self.waiting:
            free, rest = mask & go[key], mask & ~go[key]
            if free.any():
                ready.append(Group(self, pc + 16, free))
            if rest.any():
                kept.append((key, pc, rest))
        self.waiting = kept
        if force and not ready:
            raise RuntimeError(f"{self.program.name}: threads wait for each other at {kept[0][1]:#x}")
        return ready

    # -- clocks

    def time(self, ins: Instruction, group: Group) -> None:
        at = group.warp_at
        now = self.clock[at]
        for b in ins.waits:
            now = np.maximum(now, self.boards[b][at])
        self.now = now
        self.clock[at] = now + max(ins.stall, 1)
        if ins.write_barrier < 6:
            self.hold(ins.write_barrier, at, now + LATENCY.get(ins.op, 30))
        if ins.read_barrier < 6:
            self.hold(ins.read_barrier, at, now + 25)

    def hold(self, board: int, at: Any, until: Lanes) -> None:
        """A scoreboard counts: it is free when the last of those that share it is there."""
        self.boards[board][at] = np.maximum(self.boards[board][at], until)

    def arrive(self, ins: Instruction, group: Group, latency: Lanes | float) -> None:
        """The result of a memory access comes after `latency` cycles."""
        if ins.write_barrier < 6:
            self.hold(ins.write_barrier, group.warp_at, self.now + latency)

    def memory_latency(self, level: Lanes, group: Group) -> Lanes:
        """Cycles until each warp of the group has what it asked for.

        DRAM feeds a block no faster than its share of the bandwidth.
        """
        rows = level.reshape(-1, WARP)
        self.occupy(group)
        slowest = rows.max(1)
        least = np.array([L1_LATENCY, L2_LATENCY, DRAM_LATENCY])[slowest]
        queued = np.where(slowest == 2, self.served - self.issued, 0)
        return np.maximum(least, queued)[group.warp_at]

    def occupy(self, group: Group) -> None:
        """Puts what the last access costs into the blocks' queues to memory."""
        per = self.T // WARP
        cycles = (self.cost / self.bandwidth).reshape(-1, per)
        now = np.full(self.clock.size, -np.inf)
        now[group.warp_at] = self.now
        start = np.maximum(self.queue, now.reshape(-1, per).min(1, initial=np.inf, where=cycles > 0))
        start = np.where(np.isfinite(start), start, self.queue)
        done = start[:, None] + np.cumsum(cycles, axis=1)
        self.queue = done[:, -1]
        self.issued, self.served = now, done.reshape(-1)

    def shared_latency(self, group: Group) -> Lanes:
        """Cycles until each warp of the group is served by shared memory: a wavefront a cycle for all of them."""
        per = self.T // WARP
        cycles = (self.wavefronts * self.sharers).reshape(-1, per)
        now = np.full(self.clock.size, -np.inf)
        now[group.warp_at] = self.now
        start = np.maximum(self.shared_queue, now.reshape(-1, per).min(1, initial=np.inf, where=cycles > 0))
        start = np.where(np.isfinite(start), start, self.shared_queue)
        done = start[:, None] + np.cumsum(cycles, axis=1)
        self.shared_queue = done[:, -1]
        return np.maximum(0, done.reshape(-1) - now)[group.warp_at] + SHARED_LATENCY

    def meet(self, lanes: Lanes) -> None:
        """The clocks of the blocks that passed a barrier."""
        per = self.T // WARP
        clocks = self.clock.reshape(-1, per)
        passed = lanes.reshape(len(self.blocks), self.T).any(1)
        clocks[passed] = clocks[passed].max(1, keepdims=True) + 20

    # -- lanes

    def guarded(self, ins: Instruction, group: Group) -> Lanes:
        if ins.guard is None:
            return group.mask
        kind, index, negated = ins.guard
        value = (self.P if kind == "P" else self.UP)[index]
        return group.mask & (~value if negated else value)

    def special(self, name: str) -> Lanes:
        zero = np.zeros(self.L, np.uint32)
        if name == "SR_TID.X":
            return self.tid
        if name == "SR_LANEID":
            return self.tid % np.uint32(WARP)
        found = re.fullmatch(r"SR_CTAID\.([XYZ])", name)
        if found:
            return zero if found[1] == "Z" else self.ctaid["XY".index(found[1])]
        if name in ("SR_TID.Y", "SR_TID.Z", "SR_CgaCtaId", "SR_CLOCKLO", "SRZ", "SR_CLOCKHI"):
            return zero
        if name in ("SR_LTMASK", "SR_LEMASK", "SR_EQMASK", "SR_GTMASK"):
            lane = (self.tid % np.uint32(WARP)).astype(np.uint64)
            bit = np.uint64(1) << lane
            below = bit - np.uint64(1)
            full = np.uint64(0xFFFFFFFF)
            return {"LT": below, "LE": below | bit, "EQ": bit, "GT": full & ~(below | bit)}[name[3:5]].astype(np.uint32)
        raise NotImplementedError(name)

    # -- memory

    def note(self, address: Lanes, active: Lanes, size: int, kind: str = "read", fetch: int = 64) -> Lanes:
        """Counts a global access, and says where each lane finds it: 0 first-level cache, 1 second, 2 DRAM.

        kind: read, written, or past, which is read past the first-level cache. fetch: the bytes around it, aligned,
        that the second-level cache asks of DRAM. A cache has a sector for as long as the block has not asked for more
        than the cache holds.
        """
        sector = (address // SECTOR).astype(np.int64)
        key = np.where(active, sector, -1).reshape(-1, WARP)
        ordered = np.sort(key, axis=1)
        unique = (ordered[:, 1:] != ordered[:, :-1]).sum(1) + 1 - (ordered[:, 0] < 0)
        unique = np.where(ordered[:, -1] < 0, 0, unique)
        if size > SECTOR // 2:
            unique = np.maximum(unique, (key >= 0).sum(1) * size // SECTOR)
        self.memory.sectors += int(unique.sum())
        self.memory.requests += int((unique > 0).sum())
        self.asked += unique.reshape(len(self.blocks), -1).sum(1) * SECTOR
        level = np.zeros(self.L, np.int8)
        self.cost = np.zeros(self.clock.size)
        lanes = np.flatnonzero(active)
        if lanes.size == 0:
            return level
        where = np.searchsorted(self.bases, address[lanes], side="right") - 1
        for k in np.unique(where):
            if k < 0:
                continue
            base, length = self.buffers[k]
            mine = lanes[where == k]
            offset = address[mine].astype(np.int64) - base
            inside = offset < length
            mine, offset = mine[inside], offset[inside] // SECTOR
            if not mine.size:
                continue
            close, deep = self.stamps[base]
            now = self.asked[self.block[mine]]
            found = deep[offset]
            new = found < 0
            dram = new | (now - found > self.far)
            past = (kind == "past") | (close[offset] < 0) | (now - close[offset] > self.near)
            level[mine] = np.where(dram, 2, np.where(past, 1, 0))
            self.memory.traffic.setdefault(base, Traffic())
            if kind == "written":
                fetch = SECTOR
            if dram.any():
                self.fetch(base, mine[dram], offset[dram], new[dram], fetch // SECTOR, kind)
            if kind != "written" and (level[mine] == 1).any():
                one = np.unique(mine[level[mine] == 1] // WARP << 40 | offset[level[mine] == 1])
                self.memory.far += int(one.size)
            deep[offset] = now
            if kind != "past":
                close[offset] = now
        return level

    def fetch(self, base: int, lanes: Lanes, offset: Lanes, new: Lanes, sectors: int, kind: str) -> None:
        """Brings sectors from DRAM, `sectors` of them together, in pieces without a gap; the first warp pays."""
        traffic, deep = self.memory.traffic[base], self.stamps[base][1]
        together, first = np.unique(offset // sectors, return_index=True)
        warp = lanes[first] // WARP
        count = together.size * sectors * SECTOR
        if kind == "written":
            traffic.written += count
            self.cost += np.bincount(warp, minlength=self.cost.size) * float(WRITE * SECTOR)
        else:
            fresh = int(new[first].sum()) * sectors * SECTOR
            traffic.read += fresh
            traffic.again += count - fresh
            order = np.lexsort((together, warp))
            at, owner = together[order], warp[order]
            begins = np.flatnonzero(np.diff(at, prepend=-2) + np.diff(owner, prepend=-2) * (1 << 40) != 1)
            bytes_of = np.diff(begins, append=at.size) * sectors * SECTOR
            # the rest of the line comes at the same time, or is still under way
            line = at * sectors // LINE
            _, same, count_of = np.unique(line, return_inverse=True, return_counts=True)
            before = self.when[base][line[begins]]
            recent = np.abs(self.clock[owner[begins]] - before) <= DRAM_LATENCY
            self.when[base][line] = self.clock[owner]
            short = (bytes_of < 128) & (count_of[same][begins] * sectors < LINE)
            more = short * np.where(recent, -1, 1)
            traffic.short += int(more.sum())
            self.cost += np.bincount(owner[begins], weights=bytes_of + more * SHORT, minlength=self.cost.size)
        around = (together[:, None] * sectors + np.arange(sectors)).reshape(-1)
        deep[around] = np.repeat(self.asked[self.block[lanes[first]]], sectors)

    def load(self, address: Lanes, active: Lanes, size: int) -> list[Lanes]:
        """The words (or one narrow number) at each active lane's address, from the host's memory."""
        width = min(size, 4)
        out = [np.zeros(self.L, np.uint32) for _ in range(max(1, size // 4))]
        lanes = np.flatnonzero(active)
        if lanes.size == 0:
            return out
        at = address[lanes].astype(np.int64)
        for mine, index, array in self.host.views(at, size, width):
            for word, target in enumerate(out):
                target[lanes[mine]] = array[index + word]
        return out

    def store(self, address: Lanes, active: Lanes, words: list[Lanes], size: int) -> None:
        width = min(size, 4)
        lanes = np.flatnonzero(active)
        if lanes.size == 0:
            return
        at = address[lanes].astype(np.int64)
        inside = np.zeros(at.size, bool)
        for base, length in self.buffers:
            inside |= (at >= base) & (at + size <= base + length)
        if not inside.all():
            raise RuntimeError(f"{self.program.name} writes to {int(at[~inside][0]):#x}, outside of its tensors")
        for mine, index, array in self.host.views(at, size, width):
            for word, source in enumerate(words):
                array[index + word] = source[lanes[mine]].astype(array.dtype)

    def shared_index(self, address: Lanes, active: Lanes, size: int) -> Lanes:
        """Indices into the array of all blocks' shared memory; counts the wavefronts of bank conflicts."""
        offset = address.astype(np.int64) & 0xFFFFFF
        index = np.where(active, self.block * self.shared_size + offset, 0)
        if active.any() and int(offset[active].max()) + size > self.shared_size:
            raise RuntimeError(f"{self.program.name}: reaches beyond its shared memory")
        word = np.where(active, offset // 4, -1)
        lanes_at_once = WARP * 4 // max(size, 4)
        rows = np.sort(word.reshape(-1, lanes_at_once), axis=1)
        fresh = np.ones(rows.shape, bool)
        fresh[:, 1:] = rows[:, 1:] != rows[:, :-1]
        fresh &= rows >= 0
        banks = 32 * 4 // max(size, 4)
        bank = (rows // max(size // 4, 1)) % banks
        flat = (np.arange(rows.shape[0])[:, None] * banks + bank)[fresh]
        conflicts = np.bincount(flat, minlength=rows.shape[0] * banks).reshape(-1, banks).max(1)
        self.memory.shared_wavefronts += int(conflicts.sum())
        self.wavefronts = conflicts.reshape(self.clock.size, -1).sum(1)
        self.memory.shared_requests += int(active.reshape(-1, WARP).any(1).sum())
        return index


# Cycles until a result that a scoreboard guards; memory says its own.
LATENCY = {
    **{"MUFU": 24, "F2I": 24, "I2F": 24, "F2F": 24, "I2FP": 12, "FCHK": 20, "S2R": 25, "S2UR": 25, "R2UR": 12},
    **{
        "SHFL": 25,
        "LDC": 30,
        "LDS": 30,
        "LDSM": 33,
        "MOVM": 33,
        "DFMA": 20,
        "DADD": 20,
        "DMUL": 20,
        "DSETP": 20,
        "HMMA": 34,
    },
    **{"VOTE": 12, "VOTEU": 12, "REDUX": 25, "STG": 25, "STS": 25, "LDGSTS": 25, "BAR": 20},
}
DRAM_LATENCY, L2_LATENCY, L1_LATENCY, SHARED_LATENCY = 800.0, 300.0, 40.0, 28.0
# A piece of DRAM shorter than a line of 128 bytes costs as much as this many bytes more, a byte written as much as this
# many read ones (docs/performance.md, "The judge").
SHORT, WRITE = 40, 1.4
