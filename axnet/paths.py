"""What names a file; imports nothing, so that a process without torch can use it."""

from __future__ import annotations

from os import PathLike

StrPath = str | PathLike[str]
