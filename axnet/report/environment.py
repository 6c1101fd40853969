"""What a result was computed with."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import axnet.environment


def environment() -> dict[str, Any]:
    """Versions, device, commit and date, for the last section of a report.

    Returns a flat mapping of names to text or numbers: axnet, torch and python versions, CPU name and cores, the device
    torch would compute on, the commit of axnet where it runs from its own repository, and the date in UTC.
    """
    found = axnet.environment.info()
    versions, device = found["versions"], found["device"]
    facts = {name: versions[name] for name in ("axnet", "torch", "python")}
    facts |= {"CPU": device["CPU"], "cores": device["cores"], "device": device.get("GPU", "CPU")}
    commit = _commit()
    if commit is not None:
        facts["commit"] = commit
    return facts | {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")}


def _commit() -> str | None:
    # An installed copy may lie inside somebody else's repository: only one that tracks this file speaks for axnet.
    here = Path(__file__).resolve()
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git(here, "rev-parse", "--short=12", "HEAD")
    changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with local changes" if commit and changed else commit


def _git(file: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
