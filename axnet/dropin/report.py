"""What accelerate did, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One place of a model.

    path: name of the module, "" for the model itself; module: its class; what: what was found there. eval, training:
    how many times faster, or None where the mode keeps the original; why: what speaks against it, or "".
    """

    path: str
    module: str
    what: str
    eval: float | None = None
    training: float | None = None
    why: str = ""
    timed: bool = True

    @property
    def replaced(self) -> bool:
        """Whether it was replaced in a mode."""
        return self.eval is not None or self.training is not None


@dataclass
class Report:
    """Rows, replaced ones first; printed as a table."""

    rows: list[Row] = field(default_factory=list)

    @property
    def replaced(self) -> list[Row]:
        """What was replaced."""
        return [row for row in self.rows if row.replaced]

    @property
    def kept(self) -> list[Row]:
        """What was found and kept, each with the reason."""
        return [row for row in self.rows if not row.replaced]

    def __copy__(self) -> Report:
        """A report of the same rows."""
        return Report(list(self.rows))

    def __deepcopy__(self, memo: dict[int, Any]) -> Report:
        """A report of the same rows."""
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        """As its text, so that a model that is saved whole needs no axnet to be loaded."""
        return str, (str(self),)

    def __str__(self) -> str:
        """The table."""
        lines = [("module", "found", "eval", "training", "why not")]
        for row in self.replaced:
            lines.append((_name([row]), row.what, _gain(row, row.eval), _gain(row, row.training), row.why))
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.kept:
            groups.setdefault((row.module, row.what, row.why), []).append(row)
        for rows in groups.values():
            lines.append((_name(rows), rows[0].what, "kept", "kept", rows[0].why))
        if len(lines) == 1:
            return "axnet.accelerate: nothing found that axnet's kernels compute."
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        return "\n".join(
            "  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def _name(rows: list[Row]) -> str:
    path = f"{rows[0].path} ({rows[0].module})" if rows[0].path else rows[0].module
    return path if len(rows) == 1 else f"{path} and {len(rows) - 1} more"


def _gain(row: Row, gain: float | None) -> str:
    return "kept" if gain is None else f"{gain:.1f}x" if row.timed else "replaced"
