"""Ctrl-C: engines return the best so far, and the run has to know that it was broken off."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupts:
    """Whether there was a Ctrl-C, whoever has swallowed the exception since."""

    def __init__(self) -> None:
        self.seen = False

    def handle(self, signum, frame) -> None:
        self.seen = True
        raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupts]:
    watch = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # only there may one listen
        yield watch
        return
    before = signal.signal(signal.SIGINT, watch.handle)
    try:
        yield watch
    finally:
        signal.signal(signal.SIGINT, before)
