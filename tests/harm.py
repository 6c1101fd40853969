"""Decoders that do what they do on a file made to harm them; light, since a process is started that imports this."""

from __future__ import annotations

import os
import time
from typing import Any


def abort(*arguments: Any) -> None:
    os.abort()


def dawdle(*arguments: Any) -> None:
    time.sleep(60)
