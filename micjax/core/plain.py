"""Values of any kind as JSON and `.npz` hold them: nothing is lost by what it holds."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

DEEPEST = 50  # a container within itself has no end


def plain(value: Any) -> Any:
    """The value in plain types: numbers of NumPy as numbers, keys as text, all else as its text."""
    return _converted(value, _text, 0)


def scalar(value: Any) -> Any:
    """A number or a text of NumPy as that of Python; all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


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
        rebuilt = np.array(array.tolist())
        if rebuilt.shape == array.shape and not rebuilt.dtype.hasobject:
            return rebuilt
    except ValueError:
        pass
    return np.array([_text(v) for v in array.ravel()], dtype=str).reshape(array.shape)


def _converted(value: Any, other: Callable[[Any], Any], depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > DEEPEST:
        return other(value)
    if hasattr(value, "__array__"):
        listed = _listed(value)
        return other(value) if listed is value else _converted(listed, other, depth + 1)
    if isinstance(value, list | tuple):
        return [_converted(v, other, depth + 1) for v in value]
    if not isinstance(value, Mapping):
        return other(value)
    converted = {}
    for key, inner in value.items():
        name = key if isinstance(key, str) else str(other(key))
        if name in converted:  # 1 and "1" are two keys
            name = f"{name} ({type(key).__name__})"
        converted[name] = _converted(inner, other, depth + 1)
    return converted


def _listed(array: Any) -> Any:
    """Its numbers; the array itself where it has none, as keys of random numbers and dates."""
    try:
        listed = np.asarray(array).tolist()
    except TypeError:
        return array
    return array if isinstance(listed, np.generic) else listed


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
