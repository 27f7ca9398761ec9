"""Files that are either the old one or all of the new one, whatever happens."""

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Where to write what takes the place of `path` when the block ends well: beside it, and on
    the disk before the name changes. Else the old file stays.

    **Raises:** `OSError` when it cannot be written.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
