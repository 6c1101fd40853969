"""How long `axnet serve` takes for a film of 1,024 px, for 1, 4 and 16 users at a time.

python benchmarks/serve.py

Each user sends the next film when the last is answered. The server is warm, and a process of its own; users are threads
of this one. CPU seconds count the server's processes, so that they say the same on a busy machine, where times do not:
the record says how busy it was (processes that wanted a core, mean of a minute).
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from axnet.data import PhantomXray
from axnet.report import environment

RESULT = Path(__file__).resolve().parent / "results" / "serve.json"
SIDE = 1024


def film() -> bytes:
    pixels = PhantomXray(1, seed=1, size=SIDE)[0]["image"][0].numpy()
    noisy = pixels * 255 + np.random.default_rng(0).normal(0, 1, pixels.shape)
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def cpu_seconds(process: int) -> float:
    """Of a process, of those it has started, and of those that these have."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{process}/task").glob("*/children")
    return own + sum(cpu_seconds(int(child)) for file in children for child in file.read_text().split())


def send(port: int, content: bytes) -> float:
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/film", content)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}: {body[:200]!r}")
    return time.perf_counter() - started


def measure(port: int, server: int, users: int, films: int, content: bytes) -> dict[str, Any]:
    times: list[float] = []

    def user() -> None:
        for _ in range(films):
            times.append(send(port, content))

    threads = [threading.Thread(target=user) for _ in range(users)]
    before, started = cpu_seconds(server), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, spent = time.perf_counter() - started, cpu_seconds(server) - before
    if len(times) != users * films:
        raise RuntimeError(f"{len(times)} of {users * films} films were answered.")
    p50, p95 = np.percentile(times, (50, 95))
    return {
        "films": len(times),
        "p50 s": round(float(p50), 3),
        "p95 s": round(float(p95), 3),
        "films a second": round(len(times) / took, 2),
        "CPU s a film": round(spent / len(times), 3),
        "cores had": round(spent / took, 2),
        "waiting for a core": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, nargs=3, default=(20, 6, 3), help="films of each of 1, 4 and 16 users")
    given = parser.parse_args()
    content = film()
    command = [sys.executable, "-c", "from axnet.cli import main; main()", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = next(int(found[1]) for line in server.stdout if (found := re.search(r"http://[^:]+:(\d+)", line)))
            for _ in range(3):
                send(port, content)
            record: dict[str, Any] = {"film": f"{SIDE} px PNG, {len(content) / 1e6:.2f} MB"}
            for users, films in zip((1, 4, 16), given.films, strict=True):
                record[f"{users} users"] = measure(port, server.pid, users, films, content)
                print(users, record[f"{users} users"], flush=True)
        finally:
            server.terminate()
    record["environment"] = environment() | {"threads": torch.get_num_threads()}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
