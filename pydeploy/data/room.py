"""How many pixels of decoded pictures may be in memory at once: threads wait for room before they decode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

MOST_PIXELS = 64 * 2**20
"""At full size, over all threads: 192 MiB in RGB, a few times that while a picture is decoded."""


class Room:
    """Room for `most` pixels; one picture that is larger has it for itself."""

    def __init__(self, most: int = MOST_PIXELS) -> None:
        self.most, self._used, self._left = most, 0, Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Holds room for a picture of so many pixels, when there is some."""
        with self._left:
            self._left.wait_for(lambda: not self._used or self._used + pixels <= self.most)
            self._used += pixels
        try:
            yield
        finally:
            with self._left:
                self._used -= pixels
                self._left.notify_all()


ROOM = Room()
"""That of this process."""
