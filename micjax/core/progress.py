"""One protocol for the progress of long work: a bar on a terminal, log lines elsewhere."""

import contextlib
import logging
import sys
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
