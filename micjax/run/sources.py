"""What an exploration measures: a point of a file that has been recorded, or a Python function."""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from micjax.active.signals import signal
from micjax.active.space import Axis, Space
from micjax.io import Field, read


@dataclasses.dataclass(frozen=True)
class Source:
    """Where outcomes come from."""

    space: Space
    measure: Callable[[Mapping[str, Any]], float]
    shape: tuple[int, ...] | None = None  # of the candidates, when they are a grid
    truth: np.ndarray | None = None  # the outcomes of all candidates, when they are known


def open_source(
    what: str, channel: str | None, signal_name: str, axes: Mapping[str, Mapping[str, Any]]
) -> Source:
    """The source that a plan names: a file, or `package.module:function`.

    **Raises:** `ValueError`, `OSError` for what cannot be opened or has no axes.
    """
    module, colon, function = what.rpartition(":")
    if colon and not os.path.exists(what):
        return _function(module, function, signal_name, axes)
    if axes:
        raise ValueError(f"{what} brings its own axes; `axes` is for functions")
    return _file(read(what, channel), signal_name)


def _function(module: str, name: str, signal_name: str, axes) -> Source:
    if not axes:
        raise ValueError(f"{module}:{name} needs `axes`: their names, lower and upper")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{module}:{name} cannot be imported: {error}") from error
    reduce = signal(signal_name)

    def measure(point: Mapping[str, Any]) -> float:
        answer = np.asarray(function(**point), float)
        if answer.ndim > 1:
            raise ValueError(f"{module}:{name} gave an array of shape {answer.shape}")
        return reduce(answer, np.arange(answer.size)) if answer.ndim else float(answer)

    return Source(Space([Axis(n, **dict(given)) for n, given in axes.items()]), measure)


def image_of(what: str, channel: str | None, signal_name: str, logarithm: bool) -> np.ndarray:
    """An image `[ny, nx]` that is known before anything is measured.

    **Raises:** `ValueError`, `OSError` for what cannot be opened or is no image.
    """
    image = _reduced(read(what, channel), signal_name)
    if image.ndim != 2:
        raise ValueError(f"{what}: shape {image.shape} is no image to look at")
    if not logarithm:
        return image
    size = np.abs(image)
    if not np.any(size > 0.0):
        raise ValueError(f"{what}: an image of zeros has no logarithm")
    return np.log10(np.maximum(size, size[size > 0.0].min()))


def _reduced(field: Field, signal_name: str) -> np.ndarray:
    """The data with a curve at each point replaced by its signal."""
    data = field.data
    if data.ndim not in (1, 2, 3):
        raise ValueError(f"{field.name}: {data.ndim} axes; an image or one of curves is wanted")
    if data.ndim < 3:
        return data
    along, reduce = field.axes[2].values, signal(signal_name)
    return np.asarray([[reduce(curve, along) for curve in row] for row in data])


def _file(field: Field, signal_name: str) -> Source:
    """An image, or a curve at each of its points, as an instrument that has seen all of it."""
    data, axes = _reduced(field, signal_name), field.axes[:2]
    named = [Axis(a.name, a.values.min(), a.values.max(), a.unit) for a in axes]
    grid = np.stack(np.meshgrid(*(a.values for a in axes), indexing="ij"), axis=-1)
    candidates, outcomes = grid.reshape(-1, len(axes)), data.ravel()
    known = {tuple(row): y for row, y in zip(candidates.tolist(), outcomes, strict=True)}
    names = [a.name for a in axes]

    def measure(point: Mapping[str, Any]) -> float:
        return float(known[tuple(point[name] for name in names)])

    return Source(Space(named, candidates), measure, data.shape, outcomes)
