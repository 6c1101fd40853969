"""Decoders that do what they do on a file made to harm them; light, since a process is started that imports this."""

from __future__ import annotations

import json
import os
import time
from multiprocessing.connection import Connection
from typing import Any


def abort(*arguments: Any) -> None:
    os.abort()


def dawdle(*arguments: Any) -> None:
    time.sleep(60)


def stop_half_way(sender: Connection, *arguments: Any) -> None:
    """Announce pixels that never come."""
    sender.send_bytes(json.dumps({"shape": [8, 8], "dtype": "uint8"}).encode())
    time.sleep(60)
