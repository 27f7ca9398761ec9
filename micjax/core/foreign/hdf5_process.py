"""Reads one HDF5 file in a process of its own, which can be ended.

The HDF5 library crashes, goes on for ever or takes all memory on some damaged files, and opens what
other files a file names. `micjax.core.foreign.hdf5` runs this script; it imports nothing that takes
long, lists the file, and then sends one dataset after the other that is asked for.
"""

import contextlib
import math
import pickle
import sys
from typing import Any

import h5py
import numpy as np

MOST_OBJECTS = 100_000
MOST_ATTRIBUTE_BYTES = 1_000_000
OVERHEAD_BYTES = 256_000_000  # of Python and the libraries
OF_SCALES = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS")


def limit(seconds: int, size: int) -> None:
    """The operating system ends this process beyond its time, and gives it no more memory."""
    with contextlib.suppress(ImportError):  # not on Windows, where the parent ends it
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        most = OVERHEAD_BYTES + 3 * size
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def clean(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def plain(value: Any) -> Any:
    """Texts as `str`, numbers as NumPy has them; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        texts = [plain(v) for v in value.ravel().tolist()]
        return texts if all(isinstance(t, str) for t in texts) else None
    known = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc"
    return value if known else None


def attributes(item: h5py.HLObject) -> dict[str, Any]:
    values = {}
    for name in item.attrs:
        if name in OF_SCALES:
            continue
        stored = item.attrs.get_id(name)
        if math.prod(stored.shape) * stored.get_type().get_size() > MOST_ATTRIBUTE_BYTES:
            raise ValueError(f"the attribute {name} of {item.name} is too large")
        value = plain(item.attrs[name])
        if value is not None:
            values[clean(name)] = value
    return values


def elsewhere(dataset: h5py.Dataset) -> str:
    """In what other files the values are; empty if they are in this one."""
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        return "a virtual dataset"
    return "external storage" if properties.get_external_count() else ""


class Listing:
    """Groups and datasets by their address: each once, however many links lead to it."""

    def __init__(self, file: h5py.File):
        self.nodes: dict[int, dict[str, Any]] = {}
        self.items: dict[int, h5py.HLObject] = {}
        self.waiting: list[h5py.HLObject] = []
        self.root = self.add(file["/"])
        while self.waiting:
            item = self.waiting.pop()
            self.nodes[address(item)] |= self.described(item)

    def add(self, item: h5py.HLObject) -> int:
        where = address(item)
        if where not in self.nodes:
            if len(self.nodes) == MOST_OBJECTS:
                raise ValueError(f"more than {MOST_OBJECTS} groups and datasets")
            self.nodes[where] = {"path": clean(item.name or "?")}
            self.items[where] = item
            self.waiting.append(item)
        return where

    def described(self, item: h5py.HLObject) -> dict[str, Any]:
        if isinstance(item, h5py.Group):
            links = {clean(name): self.target(item, name) for name in item}
            return {"attrs": attributes(item), "links": links}
        if not isinstance(item, h5py.Dataset):
            return {}
        away = elsewhere(item)
        if away:
            return {"attrs": attributes(item), "shape": (), "elsewhere": away}
        return {
            "attrs": attributes(item),
            "shape": item.shape if item.shape is not None else (0,),
            "kind": kind(item),
            "dims": [(clean(d.label), self.add(d[0]) if len(d) else None) for d in item.dims],
            "is_scale": bool(item.is_scale),
        }

    def target(self, group: h5py.Group, name: str) -> int | str | None:
        """An address, the path of a soft link, or None for what leads out of the file."""
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.HardLink):
            return self.add(group[name])
        return clean(link.path) if type(link) is h5py.SoftLink else None

    def read(self, where: int, part: tuple[slice, ...]) -> Any:
        item = self.items[where]
        return plain(item[()]) if kind(item) == "text" else np.asarray(item[part])


def address(item: h5py.HLObject) -> int:
    return h5py.h5o.get_info(item.id).addr


def kind(dataset: h5py.Dataset) -> str:
    """`text`, a letter of NumPy for numbers, or nothing."""
    try:
        dtype = dataset.dtype
    except TypeError:  # NumPy has no such numbers
        return ""
    if h5py.check_string_dtype(dtype):
        return "text"
    return dtype.kind if dtype.kind in "biufc" else ""


def needed_bytes(dataset: h5py.Dataset, part: tuple[slice, ...]) -> int:
    """What the part takes, or a chunk of the dataset, as the numbers that a `Field` holds."""
    lengths = [len(range(*cut.indices(n))) for cut, n in zip(part, dataset.shape, strict=False)]
    size = math.prod(lengths) * math.prod(dataset.shape[len(part) :])
    largest = max(size, math.prod(dataset.chunks or ()))
    return largest * max(dataset.dtype.itemsize, 8)


def serve(path: str, allowed: int) -> None:
    def answer(*parts: Any) -> None:
        pickle.dump(parts, sys.stdout.buffer, protocol=5)
        sys.stdout.buffer.flush()

    try:
        file = h5py.File(path, "r")
        listing = Listing(file)
        answer("listing", (listing.root, listing.nodes))
    except Exception as error:  # h5py raises what it stumbles over
        return answer("refused", str(error) or type(error).__name__)
    spent = 0
    while True:
        try:
            where, part = pickle.load(sys.stdin.buffer)
        except EOFError:
            return None
        try:
            spent += needed_bytes(listing.items[where], part)
            if spent > allowed:
                answer("too large", spent)
            else:
                answer("values", listing.read(where, part))
        except Exception as error:
            answer("refused", str(error) or type(error).__name__)


if __name__ == "__main__":
    limit(int(sys.argv[2]), int(sys.argv[3]))
    serve(sys.argv[1], int(sys.argv[3]))
