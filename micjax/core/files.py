"""Files that are either the old one or all of the new one, whatever happens."""

import contextlib
import io
import os
import pathlib
import threading
from collections.abc import Callable, Iterator

import h5py


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


def write_atomically(path: str | os.PathLike, write: Callable[[h5py.File], None]) -> None:
    """An HDF5 file at `path` that is either the old one or all of the new one, whatever happens.

    **Raises:** `OSError` when it cannot be written; the old file is still there.
    """
    memory = io.BytesIO()  # so that a full disk is a plain OSError and not a torn HDF5 file
    with h5py.File(memory, "w") as file:
        write(file)
    with replaced(path) as unfinished:
        unfinished.write_bytes(memory.getbuffer())
