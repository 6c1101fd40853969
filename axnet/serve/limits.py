"""What a server takes."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Limits on films.

    megabytes, megapixels: of one film. films: dropped on the page at once. waiting: films that
    the server holds at a time, of all users, one more is told to come back. seconds: for the upload of a film, and for
    decoding it. memory: bytes that decoding it may take.
    Raises ValueError for one below 1.
    """

    megabytes: int = 64
    megapixels: int = 40
    films: int = 20
    waiting: int = 32
    seconds: int = 60
    memory: int = 3 * 2**30

    def __post_init__(self) -> None:
        """Check."""
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}, expected 1 or more.")

    @property
    def size(self) -> int:
        """Bytes of a film's file."""
        return self.megabytes * 10**6

    @property
    def pixels(self) -> int:
        """Pixels of a film."""
        return self.megapixels * 10**6
