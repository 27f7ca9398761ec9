"""The one way to open an HDF5 file that somebody else may have made.

Read in a process of its own (0.2 s) with an end to its time and memory, without any value that lies
in another file: external storage, virtual datasets, external links.
"""

import contextlib
import dataclasses
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from micjax.core.foreign.limits import allowed_bytes, allowed_seconds, too_large

SCRIPT = pathlib.Path(__file__).with_name("hdf5_process.py")
MOST_STEPS = 1000  # along one path, links included


class Damaged(ValueError):
    """What is wrong inside a file, which the message does not name."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A group or a dataset.

    **Arguments:**

    - `address`: which one it is. `path`: one of its names. `attrs`: its attributes, texts as `str`.
    - `links`: of a group, the address or path that each name leads to; None if it leads outside.
    - `shape`: of a dataset. `kind`: NumPy's letter for numbers, `text`, or empty for others.
    - `dims`: label and scale of each dimension. `is_scale`: whether it is one itself.
    - `elsewhere`: how its values lie in another file.
    """

    address: int
    path: str
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    links: Mapping[str, int | str | None] | None = None
    shape: tuple[int, ...] | None = None
    kind: str = ""
    dims: Sequence[tuple[str, int | None]] = ()
    is_scale: bool = False
    elsewhere: str = ""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def text(self, attribute: str) -> str:
        """An attribute, which may be the only text of a list; empty if it is no text."""
        value = self.attrs.get(attribute, "")
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        return value if isinstance(value, str) else ""


class File:
    """A listed file, whose datasets are read when they are asked for."""

    def __init__(self, root: int, nodes: Mapping[int, Node], child: "_Child"):
        self.root, self._nodes, self._child = nodes[root], nodes, child

    def nodes(self) -> Iterator[Node]:
        """Every group and dataset once, in the order of their paths."""
        return iter(sorted(self._nodes.values(), key=lambda node: node.path.split("/")))

    def at(self, address: int) -> Node:
        return self._nodes[address]

    def get(self, path: str, start: Node | None = None) -> Node | None:
        """What a path leads to, from a group on or from the root; None if it leads nowhere.

        **Raises:** `Damaged` for links that leave the file or go round in circles.
        """
        node = self.root if start is None or path.startswith("/") else start
        ahead = _parts(path)
        for _ in range(MOST_STEPS):
            if not ahead:
                return node
            name = ahead.pop()
            if node.links is None or name not in node.links:
                return None
            target = node.links[name]
            if target is None:
                raise Damaged(f"{node.path}: {name} is a link out of the file, which is refused")
            if isinstance(target, int):
                node = self._nodes[target]
            else:
                node = self.root if target.startswith("/") else node
                ahead += _parts(target)
        raise Damaged(f"the path {path} goes round in circles")

    def read(self, dataset: Node, part: tuple[slice, ...] = ()) -> Any:
        """The values: an array, a text or a list of texts.

        **Arguments:**

        - `part`: of an array, along its first axes; all of it without one.

        **Raises:** `Damaged` for what is damaged, too large, no numbers, or in another file.
        """
        if dataset.elsewhere:
            raise Damaged(f"{dataset.path} is {dataset.elsewhere}: other files are not opened")
        if not dataset.kind:
            raise Damaged(f"{dataset.path} holds neither numbers nor text")
        return self._child.ask(dataset.address, part)

    def arrays(self, group: str) -> dict[str, np.ndarray]:
        """All that is in a group, by name.

        **Raises:** `Damaged` where the group is not there or holds anything but arrays.
        """
        node = self.get(group)
        if node is None or node.links is None:
            raise Damaged(f"there is no group {group!r} in it")
        return {name: self.array(name, node) for name in node.links}

    def array(self, path: str, start: Node | None = None) -> np.ndarray:
        """The numbers at a path, from a group on or from the root.

        **Raises:** `Damaged` where there are none.
        """
        item = self.get(path, start)
        values = None if item is None or item.shape is None else self.read(item)
        if not isinstance(values, np.ndarray):
            raise Damaged(f"{path} is no array of numbers in it")
        return values


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")][::-1]


class _Child:
    """The process that holds the file."""

    def __init__(self, path: pathlib.Path):
        self.seconds, self.allowed = allowed_seconds(path), allowed_bytes(path)
        settings = map(str, (path, self.seconds, self.allowed))
        paths = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, "-P", SCRIPT, *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for us
        )
        # for a disk that does not answer, and systems without limits
        self.timer = threading.Timer(10 * self.seconds, self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def ask(self, address: int, part: tuple[slice, ...]) -> Any:
        with contextlib.suppress(BrokenPipeError):
            pickle.dump((address, part), self.process.stdin)
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        try:
            kind, value = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise Damaged(self._how_it_ended()) from None
        if kind == "too large":
            raise Damaged(too_large(value, self.allowed))
        if kind == "refused":
            raise Damaged(value)
        return value

    def _how_it_ended(self) -> str:
        code = -self.process.wait()
        if code in (getattr(signal, n, None) for n in ("SIGXCPU", "SIGKILL")):
            return f"reading it took more than {self.seconds} s"
        return f"the HDF5 library crashed on it (code {code})"

    def close(self) -> None:
        self.timer.cancel()
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[File]:
    """An HDF5 file to read.

    **Raises:** `Damaged` for what is no HDF5 file, damaged, or too large.
    """
    child = _Child(pathlib.Path(path))
    try:
        root, listed = child.answer()
        yield File(root, {where: Node(where, **node) for where, node in listed.items()}, child)
    finally:
        child.close()
