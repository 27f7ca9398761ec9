"""Lines of JSON on the disk that are not lost or changed unnoticed, and that one process writes.

    {..., "chain": sha256(the chain of the line before, and this line up to here)}

What a chain cannot tell is that lines are missing at its end. How many there were, and the last
chain, is written to another file after each line; a kill in between leaves that one line behind.
The lock is on the open file of the lines: the system gives it back when we are gone, and a file
that was removed or replaced is noticed by whoever writes to it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

from micjax.instruments.base import InstrumentError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

CHAIN = b', "chain": "'
BEYOND = 1 << 40  # where Windows locks a byte: a byte that is there could not be read
LOOKING_S = 0.5  # for so long somebody who only looks may have the lock


class JournalError(InstrumentError):
    """The journal cannot be written, read, or belongs to something else.

    A journal that once could not be written takes nothing more: a new one takes up what is on the
    disk.
    """


class Lines(NamedTuple):
    """What is on the disk: the lines, the chain of the last one, and how many have none."""

    content: list[dict[str, Any]]
    chain: str
    unchained: int  # a journal of before there were chains goes on with them


def chained(chain: str, content: dict[str, Any]) -> tuple[bytes, str]:
    """A line as it is written after the line of `chain`, and its own chain."""
    text = json.dumps(content).encode()[:-1]
    chain = _linked(chain, text)
    return text + CHAIN + chain.encode() + b'"}\n', chain


def read_chained(path: pathlib.Path) -> Lines:
    """All lines but a last one that was torn off; it may still be written to.

    **Raises:** `JournalError` for lines that cannot be read, were changed, or are missing.
    """
    if not path.exists():
        return Lines([], "", 0)
    count, last = _end(path)  # before the lines, which are more by the time they are read
    chain, unchained, content = "", 0, []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        content.append(_parsed(line, f"{path}, line {number}"))
        given = content[-1].pop("chain", None)
        chain = _linked(chain, line if given is None else line.rpartition(CHAIN)[0])
        if given is None and unchained == number - 1:
            unchained = number
        elif given != chain:
            raise JournalError(
                f"{path}, line {number}: its checksum is another one. It, or a line before it, was "
                "changed, added or taken away; the file of each record has a checksum of its own"
            )
        if number == count and chain != last:
            raise JournalError(f"{path}, line {number} is not the one that was written there")
    if len(content) < count:
        raise JournalError(f"{path}: {count - len(content)} lines are missing at its end")
    return Lines(content, chain, unchained)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise JournalError(f"{where}: {error}") from error
    if not isinstance(entry, dict):
        raise JournalError(f"{where}: {entry!r} is no entry of a journal")
    return entry


def write_end(path: pathlib.Path, count: int, chain: str) -> None:
    """How many lines there are, without a sync: one that is behind does no harm."""
    with contextlib.suppress(OSError), open(_end_of(path), "w", encoding="ascii") as file:
        file.write(f"{count} {chain}\n")


def lock(file, path: pathlib.Path) -> None:
    """Makes this the only process that writes to an open file.

    **Raises:** `JournalError` if there is another one.
    """
    until = time.monotonic() + LOOKING_S
    while not _locked(file, True):
        if time.monotonic() > until:
            raise JournalError(f"{path.parent}: another process writes this journal")
        time.sleep(0.02)


def is_locked(path: pathlib.Path) -> bool:
    """Whether a process writes to a file."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        return not _locked(file, False)


def same_file(file, path: pathlib.Path) -> bool:
    """Whether an open file still is the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _linked(chain: str, text: bytes) -> str:
    return hashlib.sha256(chain.encode() + text).hexdigest()


def _end_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".end")


def _end(path: pathlib.Path) -> tuple[int, str]:
    try:
        count, chain = _end_of(path).read_text(encoding="ascii").split()
        return int(count), chain
    except (OSError, ValueError):  # not there, or torn by a failure of the power
        return 0, ""


def _locked(file, writes: bool) -> bool:
    try:
        if fcntl is not None:
            kind = fcntl.LOCK_EX if writes else fcntl.LOCK_SH
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        else:
            os.lseek(file.fileno(), BEYOND, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
