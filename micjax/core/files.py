"""What is written: files as a whole, and values of any kind as JSON and `.npz` hold them."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

DEEPEST = 50  # a container within itself has no end


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Where to write what takes the place of `path` when the block ends well: beside it, and on
    the disk before the name changes. Else the old file stays.

    **Raises:** `OSError` when it cannot be written.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def plain(value: Any) -> Any:
    """The value in plain types: numbers of NumPy as numbers, keys as text, all else as its text."""
    return _converted(value, _text, 0)


def exact(value: Any) -> Any:
    """The value in plain types, if it can be read again from JSON as what it is.

    **Raises:** `ValueError` otherwise.
    """
    return _converted(value, _refused, 0)


def dumps(value: Any, **options: Any) -> str:
    """JSON that every reader reads: in plain types, and what is not finite is null."""
    return json.dumps(_finite(plain(value)), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def storable(values: Any) -> np.ndarray:
    """An array that is read again without running what it holds: objects become numbers or text."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows that are not equally long
        array = np.asarray(values, dtype=object)
    if not array.dtype.hasobject:
        return array
    try:
        found = np.array(array.tolist())
        if found.shape == array.shape and not found.dtype.hasobject:
            return found
    except ValueError:
        pass
    return np.array([_text(v) for v in array.ravel()], dtype=str).reshape(array.shape)


def _converted(value: Any, other: Callable[[Any], Any], depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > DEEPEST:
        return other(value)
    if hasattr(value, "__array__"):
        found = _listed(value)
        return other(value) if found is value else _converted(found, other, depth + 1)
    if isinstance(value, list | tuple):
        return [_converted(v, other, depth + 1) for v in value]
    if not isinstance(value, Mapping):
        return other(value)
    found = {}
    for key, inner in value.items():
        name = key if isinstance(key, str) else str(other(key))
        if name in found:  # 1 and "1" are two keys
            name = f"{name} ({type(key).__name__})"
        found[name] = _converted(inner, other, depth + 1)
    return found


def _listed(array: Any) -> Any:
    """Its numbers; the array itself where it has none, as keys of random numbers and dates."""
    try:
        found = np.asarray(array).tolist()
    except TypeError:
        return array
    return array if isinstance(found, np.generic) else found


def _text(value: Any) -> str:
    if isinstance(value, set | frozenset):
        return str(sorted(map(str, value)))  # in an order that is the same in every process
    try:
        return str(value)
    except Exception:  # whatever it is, it is not worth a measurement
        return f"<{type(value).__name__}>"


def _refused(value: Any) -> Any:
    raise ValueError(
        f"{_text(value):.60} is a {type(value).__name__}, which JSON does not hold: numbers, text, "
        "and lists and tables of them with names that are text can be written"
    )
