"""Decode a film from anywhere in a process that may fail: with little memory, little time and no file to write.

Decoders are C, and a file made to harm one may end its process or fill its memory. Each film gets a process of its own,
forked of a small one that has the decoders loaded, so that neither reaches the server and nothing of the film stays.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from axnet.serve.limits import Limits

_PRELOADED = ["__main__", "axnet.serve.decoding", "axnet.serve.decoders"]
_DTYPES = ("uint8", "uint16", "float32")


class FilmError(ValueError):
    """A film that is not read, with a sentence for who sent it."""


def prepare() -> None:
    """Start the small process that the others are forked of; called once, before requests come."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    first = context.Process(target=int, daemon=True)
    first.start()
    first.join()


def decode(content: bytes, name: str, limits: Limits) -> npt.NDArray[Any]:
    """The stored values of a film, as axnet.data.image.decode_stored returns them. Raises FilmError."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    with receiver:
        with sender:
            child = context.Process(target=_serve_one, args=(sender, content, name, limits), daemon=True)
            child.start()
        end = time.monotonic() + limits.seconds
        timer = threading.Timer(limits.seconds, child.kill)  # also of one that stops in the middle of its answer
        timer.start()
        try:
            return _received(receiver, name, limits)
        except (EOFError, OSError):  # a process that ended, or that sent more than agreed
            late = time.monotonic() >= end
            child.join(5)
            late = late or child.exitcode == -signal.SIGXCPU
            what = f"took longer than {limits.seconds} s to decode" if late else "is damaged: its decoder broke off"
            raise FilmError(f"image file '{name}' {what}.") from None
        finally:
            timer.cancel()
            timer.join()
            child.kill()
            child.join()
            child.close()


def _received(receiver: Connection, name: str, limits: Limits) -> npt.NDArray[Any]:
    head = json.loads(receiver.recv_bytes(2**16))  # bytes, not pickles: whoever took over the decoder sends no code
    if "error" in head:
        raise FilmError(head["error"])
    shape, dtype = tuple(map(int, head["shape"])), head["dtype"]
    if dtype not in _DTYPES or len(shape) != 2 or not 0 < shape[0] * shape[1] <= limits.pixels:
        raise FilmError(_too_large(name, limits))
    film = np.frombuffer(receiver.recv_bytes(limits.pixels * 4), dtype)
    if film.size != shape[0] * shape[1]:
        raise FilmError(_too_large(name, limits))
    return film.reshape(shape)


def _too_large(name: str, limits: Limits) -> str:
    return f"image file '{name}' does not decode to one grey image of at most {limits.megapixels} million pixels."


def _serve_one(sender: Connection, content: bytes, name: str, limits: Limits) -> None:
    """What the process of one film does."""
    _confine(limits)
    from axnet.data.image import decode_stored

    try:
        film = np.ascontiguousarray(decode_stored(content, name, limits.pixels))
    except MemoryError:
        problem = f"image file '{name}' takes more than {limits.memory / 2**30:.1f} GiB to decode."
    except (ValueError, OSError, ImportError) as error:
        problem = " ".join(str(error).split())
    except Exception as error:
        problem = f"image file '{name}' cannot be decoded ({type(error).__name__})."
    else:
        if film.size > limits.pixels:
            problem = _too_large(name, limits)
        else:
            sender.send_bytes(json.dumps({"shape": film.shape, "dtype": str(film.dtype)}).encode())
            sender.send_bytes(film.data.cast("B"))
            return
    sender.send_bytes(json.dumps({"error": problem[:1000]}).encode())


def _confine(limits: Limits) -> None:
    """Limit this process; what its decoders print, which may be of the film, goes nowhere."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's to answer
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    wanted = {
        resource.RLIMIT_CORE: 0,  # a dump would hold the film
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CPU: limits.seconds,
        resource.RLIMIT_AS: _virtual_memory() + limits.memory,
    }
    for kind, value in wanted.items():
        with contextlib.suppress(ValueError, OSError):  # a system may not have it, or have a lower one
            resource.setrlimit(kind, (value, value))


def _virtual_memory() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
