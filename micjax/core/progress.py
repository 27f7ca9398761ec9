"""Long work: one protocol for its progress (a bar on a terminal, log lines elsewhere), and Ctrl-C,
which ends a loop and not the program: what the loop has is kept."""

import contextlib
import dataclasses
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

Progress = Callable[[int, str], None]  # (steps done so far, what to say beside them)

log = logging.getLogger("micjax")


@contextlib.contextmanager
def progress(title: str, total: int, every_s: float = 10.0) -> Iterator[Progress]:
    """Reports `total` steps of `title`: a bar on a terminal, else a log line each `every_s`.

    A `total` of 0 is one that nobody knows.
    """
    if sys.stderr.isatty():
        with tqdm(total=total or None, desc=title, leave=False) as bar:

            def show(done: int, text: str = "") -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update(done - bar.n)

            yield show
        return

    last = time.monotonic()

    def say(done: int, text: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            log.info("%s: %d of %s %s", title, done, total or "?", text)

    yield say


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
