"""Ctrl-C ends a loop, not the program: what the loop has is kept."""

import contextlib
import dataclasses
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
