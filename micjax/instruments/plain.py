"""Values of any kind as JSON and `.npz` hold them: a record is not lost by what it holds."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

DEEPEST = 50  # a container within itself has no end


def plain(value: Any) -> Any:
    """The value in plain types: numbers of NumPy as numbers, keys as text, all else as its text."""
    return _converted(value, _text, 0)


def exact(value: Any) -> Any:
    """The value in plain types, if it can be read again from JSON as what it is.

    **Raises:** `ValueError` otherwise.
    """
    return _converted(value, _refused, 0)


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
        found = np.asarray(value).tolist()
        return (
            other(value) if isinstance(found, np.generic) else _converted(found, other, depth + 1)
        )
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


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # whatever it is, it is not worth a measurement
        return f"<{type(value).__name__}>"


def _refused(value: Any) -> Any:
    raise ValueError(
        f"{_text(value):.60} is a {type(value).__name__}, which JSON does not hold: numbers, text, "
        "and lists and tables of them with names that are text can be written"
    )
