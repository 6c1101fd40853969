"""A command in several processes, one per device: started, watched, and ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

USER_ERROR = 2
_GRACE = 3.0  # seconds in which the first process may say itself what is wrong


def rank() -> int:
    """Which of the processes this is, counted from 0; 0 also where there is only one."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def started_by_another() -> bool:
    """Whether torchrun, a cluster or this module has started this process as one of several."""
    return "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ


def run_together(count: int, environment: dict[str, str]) -> None:
    """Run this very command in `count` processes and wait for all; the first one speaks for them.

    environment: variables for all of them, besides those with which torch.distributed finds its peers.
    Raises ChildProcessError, in one sentence, when one was killed or failed: the others are then ended, none is left
    waiting for it. Exits with the first one's code when that has said itself what is wrong.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "axnet", **environment}
    if sys.platform == "linux":
        shared |= {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}
    running: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as opened:
        complaints = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        try:
            for number, complaint in enumerate(complaints):
                variables = {**os.environ, **shared, "RANK": str(number), "LOCAL_RANK": str(number)}
                out, error = (None, None) if number == 0 else (subprocess.DEVNULL, complaint)
                running.append(subprocess.Popen(sys.orig_argv, env=variables, stdout=out, stderr=error))
            _wait(running, complaints)
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                process.wait()
            signal.signal(signal.SIGTERM, before)


def _wait(running: Sequence[subprocess.Popen[bytes]], complaints: Sequence[IO[bytes]]) -> None:
    while True:
        codes = [process.poll() for process in running]
        if not any(code is None for code in codes) and not any(codes):
            return
        failed = next((number for number, code in enumerate(codes) if code), None)
        if failed is None:
            time.sleep(0.1)
            continue
        code = codes[failed]
        assert code is not None
        if code > 0:  # it has ended itself: what went wrong, the first process says, too
            deadline = time.monotonic() + _GRACE
            while running[0].poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if running[0].poll() == USER_ERROR:
                sys.exit(USER_ERROR)
        complaints[failed].seek(0)
        lines = complaints[failed].read().decode(errors="replace").strip().splitlines()
        said = lines[-1].removeprefix("axnet: ") if lines else ""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise ChildProcessError(
            f"process {failed + 1} of {len(running)} {how}, so the others were ended too"
            + (f": {said}" if said else "; --resume continues the run from its last epoch.")
        )
