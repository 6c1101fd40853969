"""SASS as nvdisasm prints it, parsed: instructions with their operands and control words."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

RZ = 255  # the register that reads zero; so does uniform register 63, and predicate 7 reads true


@dataclass(slots=True)
class Operand:
    """kind: R, U (uniform), P, UP, imm, const, mem, special, code (a byte offset), barrier, other."""

    kind: str
    index: int = 0
    negative: bool = False  # of predicates: not
    absolute: bool = False
    inverse: bool = False
    half: str = ""  # H0_H0, H1_H1, ...
    text: str = ""
    terms: tuple[Any, ...] = ()  # of a memory address: ("R" | "R64" | "U", index, scale) and a byte offset


@dataclass(slots=True)
class Instruction:
    at: int  # byte offset
    op: str
    mods: tuple[str, ...]
    operands: list[Operand]
    text: str
    guard: tuple[str, int, bool] | None = None  # P or UP, index, negated
    stall: int = 0  # cycles until the next of the warp
    write_barrier: int = 7  # set when the result is there; 7: none
    read_barrier: int = 7
    waits: tuple[int, ...] = ()
    call: Any = None
    threads: int = 0  # executed
    warps: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Program:
    name: str  # demangled, as kernel<arguments>
    mangled: str
    code: list[Instruction]

    def at(self, offset: int) -> int:
        return offset // 16


def split(text: str) -> list[str]:
    """Operands at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, ch in enumerate(text):
        depth += (ch in "[(") - (ch in "])")
        if ch == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    tail = text[start:].strip()
    return [*parts, tail] if tail else parts


def memory(text: str) -> Operand:
    inner = text[text.rindex("[") + 1 : text.rindex("]")]
    terms: list[tuple[str, int, int]] = []
    offset = 0
    for word in inner.replace("+-", "-").replace("-", "+-").split("+"):
        if not word:
            continue
        found = re.fullmatch(r"(U?R)(Z|\d+)((?:\.\w+)*)", word)
        if found is None:
            offset += int(word, 0)
            continue
        scale = re.search(r"\.X(\d+)", found[3])
        wide = "64" if ".64" in found[3] else ""
        kind = ("U" if found[1] == "UR" else "R") + wide
        zero = 63 if found[1] == "UR" else RZ
        terms.append((kind, zero if found[2] == "Z" else int(found[2]), int(scale[1]) if scale else 1))
    return Operand("mem", text=text, terms=(tuple(terms), offset))


def operand(text: str, labels: dict[str, int]) -> Operand:
    text = text.removesuffix(".reuse")
    target = re.search(r"`\((.+)\)", text)
    if target:
        return Operand("code", labels.get(target[1], -1), text=text)
    if text.startswith(("c[", "-c[", "|c[", "~c[", "-|c[")):
        found = re.search(r"c\[(0x[0-9a-f]+)\]\[(?:(U?R\w+)\+?)?(-?0x[0-9a-f]+)?\]", text)
        assert found, text
        base = int(found[3] or "0", 16)
        result = Operand("const", base, text.startswith("-"), "|" in text, text.startswith("~"), text=text)
        result.terms = (int(found[1], 16), found[2])
        return result
    if "[" in text:
        return memory(text)
    found = re.fullmatch(r"([-~!]*)(\|?)(U?R|U?P)(Z|T|\d+)(\|?)((?:\.\w+)*)(\|?)", text)
    if found:
        kind = {"UR": "U"}.get(found[3], found[3])
        zero = {"R": RZ, "U": 63, "P": 7, "UP": 7}[kind]
        half = next((p for p in found[6].split(".") if re.fullmatch(r"H[01]_H[01]|B\d|H[01]", p)), "")
        index = zero if found[4] in "ZT" else int(found[4])
        negative = "-" in found[1] or "!" in found[1]
        return Operand(kind, index, negative, bool(found[2]), "~" in found[1], half, text)
    if re.fullmatch(r"B\d+", text):
        return Operand("barrier", int(text[1:]), text=text)
    if text == "SRZ" or text.startswith("SR_"):
        return Operand("special", text=text)
    if re.match(r"[-+]?(0x[0-9a-f]+|\d|INF|QNAN|SNAN)", text):
        return Operand("imm", text=text)
    return Operand("other", text=text)


def instruction(at: int, text: str, control: int, labels: dict[str, int]) -> Instruction:
    guard = None
    found = re.match(r"@(!?)(U?P)(T|\d+)\s+(.*)", text)
    if found:
        guard = (found[2], 7 if found[3] == "T" else int(found[3]), bool(found[1]))
        text = found[4]
    name, _, rest = text.partition(" ")
    op, *mods = name.split(".")
    rest = rest.replace(" `(", ", `(") if op == "RET" else rest
    waits = tuple(i for i in range(6) if control >> (11 + i) & 1)
    return Instruction(
        *(at, op, tuple(mods), [operand(t, labels) for t in split(rest)], text, guard),
        *(control & 15, control >> 5 & 7, control >> 8 & 7, waits),
    )


@lru_cache
def short_name(mangled: str) -> str:
    """kernel<arguments> of a mangled name, the same from nvcc and from g++."""
    full = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    return kernel_of(full) or mangled


def kernel_of(full: str) -> str | None:
    found = re.search(r"(\w+_kernel(?:<.*?>)?)\(", full)
    if not found:
        return None
    name = re.sub(r"c10::|axnet::cuda::|\((?:int|bool|unsigned int)\)", "", found[1])
    return name.replace("true", "1").replace("false", "0")


def disassemble(nvdisasm: str, cubin: Path) -> dict[str, str]:
    """The text of each kernel by its short name."""
    listing = subprocess.run([nvdisasm, "-hex", "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\s*\.section\s+\.text\.([^,\s]+),.*$", listing, flags=re.M)
    return {short_name(name): name + "\n" + body for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def parse(name: str, listing: str) -> Program:
    mangled, _, body = listing.partition("\n")
    lines: list[tuple[int, str, int]] = []  # offset, text, high word
    labels: dict[str, int] = {mangled: 0}
    pending: list[str] = []
    for line in body.splitlines():
        label = re.match(r"^([.$\w]+):\s*$", line)
        if label:
            pending.append(label[1])
            continue
        code = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* (0x[0-9a-f]+) \*/", line)
        if code:
            at = int(code[1], 16)
            labels.update((p, at) for p in pending)
            pending = []
            lines.append((at, code[2], 0))
            continue
        high = re.match(r"\s+/\* (0x[0-9a-f]+) \*/", line)
        if high and lines:
            at, text, _ = lines[-1]
            lines[-1] = (at, text, int(high[1], 16) >> 41)
    return Program(name, mangled, [instruction(at, text, high, labels) for at, text, high in lines])
