"""Starts scripts.py in processes of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).with_name("scripts.py")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def at_once(*calls: tuple[object, ...]) -> list[str]:
    """What several processes print that begin their work together."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, str(SCRIPTS), *map(str, call)], **pipes) for call in calls]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    printed = []
    for process in started:
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-4000:]
        printed.append(out)
    return printed
