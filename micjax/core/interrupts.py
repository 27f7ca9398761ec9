"""Ctrl-C ends a loop, not the program: what the loop has is kept."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator


@dataclasses.dataclass
class Interruption:
    """Whether there was a Ctrl-C."""

    happened: bool = False


@contextlib.contextmanager
def until_interrupted() -> Iterator[Interruption]:
    """The block ends with it; then `.happened` is true of what the block was given."""
    interruption = Interruption()
    try:
        yield interruption
    except KeyboardInterrupt:
        interruption.happened = True


@contextlib.contextmanager
def interrupts() -> Iterator[Interruption]:
    """Whether there is a Ctrl-C within the block, whoever keeps the exception to himself."""
    interruption = Interruption()

    def handle(number, frame) -> None:
        interruption.happened = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only there may one listen
        yield interruption
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
