"""One model for all users: films wait for it in turn, and one too many is told so."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from axnet.serve.answer import Answers
from axnet.serve.decoding import FilmError, decode
from axnet.serve.limits import Limits

if TYPE_CHECKING:
    from axnet.predictor import Predictor


_BLANK = np.zeros((256, 256), np.uint8)


class BusyError(Exception):
    """The server holds as many films as it may."""


class GoneError(Exception):
    """Who sent the film has left."""


class Reading:
    """Reads films for everybody: decoders on all cores, the model in one thread, answers beside it.

    `held` counts the films that are here, from before their upload until they are answered.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        """The class describes the arguments."""
        self.predictor = predictor
        self.limits = limits
        self.answers = Answers(predictor)
        self.held = 0
        # torch keeps threads of its own for each thread that calls it
        self.model = ThreadPoolExecutor(1, "model")
        self.helpers = ThreadPoolExecutor(os.cpu_count() or 1, "films")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one film while it is here. Raises BusyError where none is free."""
        if self.held >= self.limits.waiting:
            raise BusyError
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def read(self, content: list[bytes], name: str, left: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """The answer for a film's file, taken out of content. left: whether who sent it has gone.

        Raises FilmError for a film that cannot be read, GoneError where nobody waits any more.
        """
        loop = asyncio.get_running_loop()
        film = await loop.run_in_executor(self.helpers, decode, content.pop(), name, self.limits)
        if await left():
            raise GoneError
        try:
            found = await loop.run_in_executor(self.model, self.predictor.predict, [film])
        except ValueError as error:
            raise FilmError(f"image file '{name}' cannot be read ({error}).") from None
        return await loop.run_in_executor(self.helpers, self.answers.of, name, film, found[0])

    async def warm(self) -> None:
        """Read a blank film, so that the first user does not wait for what is done once."""
        await asyncio.get_running_loop().run_in_executor(self.model, self.predictor.predict, [_BLANK])

    def close(self) -> None:
        """Give the threads back."""
        for threads in (self.model, self.helpers):
            threads.shutdown(wait=False, cancel_futures=True)
