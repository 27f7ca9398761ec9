"""Replays a file: an instrument that has seen everything beforehand.

Images become the mode "image" (a frame), "line" (a path) and "pixel" (a point), maps of curves the
mode "spectrum" (a point). The nearest pixel answers, and `Record.at` says where it lies.
"""

import os
import time
from collections.abc import Iterable, Mapping

import numpy as np

from micjax.instruments.base import (
    Axis,
    Frame,
    LimitError,
    Mode,
    Over,
    Record,
    check_over,
    check_target,
)
from micjax.io import Field, channels, read
from micjax.io.fields import nm_per


class Replay:
    """An instrument over fields that share x and y.

    **Arguments:**

    - `fields`: images `[iy, ix]` and maps of curves `[iy, ix, k]`, all over the same pixels.
    - `rate`: m/s along either axis, which decides what travel would take.
    - `seconds`: of each measurement of a point; a frame takes its dwell times its pixels.

    **Raises:** `ValueError` for no fields, for fields over other pixels, or without lengths.
    """

    def __init__(self, fields: Iterable[Field], *, rate: float = np.inf, seconds: float = 0.0):
        fields = list(fields)
        if not fields:
            raise ValueError("there is nothing to replay")
        for item in fields:
            if item.data.ndim not in (2, 3):
                raise ValueError(f"{item.name}: {item.data.ndim} axes; images or maps are wanted")
        self._y, self._x = (_metres(axis) for axis in fields[0].axes[:2])
        for item in fields:
            for axis, known in zip(item.axes[:2], (self._y, self._x), strict=True):
                if not np.array_equal(_metres(axis), known):
                    raise ValueError(f"{item.name} and {fields[0].name} have other pixels")
        self._images = {f.name: f for f in fields if f.data.ndim == 2}
        self._curves = {f.name: f for f in fields if f.data.ndim == 3}
        self.axes: Mapping[str, Axis] = {
            name: Axis("m", float(values.min()), float(values.max()), rate=rate)
            for name, values in (("x", self._x), ("y", self._y))
        }
        self.modes: Mapping[str, Mode] = {}
        if self._images:
            units = {n: f.unit for n, f in self._images.items()}
            self.modes |= {
                "image": Mode("frame", units, seconds=lambda f: f.dwell * f.shape[0] * f.shape[1]),
                "line": Mode("path", units),
                "pixel": Mode("point", units, seconds=seconds),
            }
        if self._curves:
            units = {n: f.unit for n, f in self._curves.items()}
            self.modes["spectrum"] = Mode("point", units, seconds=seconds)
        self._at = {"x": float(self._x[len(self._x) // 2]), "y": float(self._y[len(self._y) // 2])}

    @classmethod
    def of(cls, path: str | os.PathLike, names: Iterable[str] | None = None, **options) -> "Replay":
        """All channels of a file, or those named."""
        return cls((read(path, n) for n in (names or channels(path))), **options)

    def read(self) -> dict[str, float]:
        return dict(self._at)

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        self._at |= check_target(self.axes, target)
        return self.read()

    def acquire(self, mode: str, over: Over = None) -> Record:
        kind, begun = check_over(self.axes, self.modes, mode, over).kind, time.time()
        if kind == "point":
            return self._point(self._curves if mode == "spectrum" else self._images, begun)
        points = over.points() if isinstance(over, Frame) else np.asarray(over, dtype=float)
        iy, ix = self._pixel(points[..., 0], points[..., 1])
        dims, coords = ("y", "x"), {}
        if kind == "path":
            dims = ("along",)
            steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
            coords = {"along": (np.concatenate([[0.0], np.cumsum(steps)]), "m")}
        elif over.angle == 0.0:
            coords = {"y": (points[:, 0, 1], "m"), "x": (points[0, :, 0], "m")}
        return Record(
            {n: f.data[iy, ix] for n, f in self._images.items()},
            dict.fromkeys(self._images, dims),
            {n: f.unit for n, f in self._images.items()},
            coords,
            self.read(),
            begun,
            time.time(),
        )

    def stop(self) -> None:
        pass

    def _point(self, fields: Mapping[str, Field], begun: float) -> Record:
        iy, ix = self._pixel(self._at["x"], self._at["y"])
        axes = {n: f.axes[2:] for n, f in fields.items()}
        return Record(
            {n: np.array(f.data[iy, ix]) for n, f in fields.items()},
            {n: tuple(a.name for a in own) for n, own in axes.items()},
            {n: f.unit for n, f in fields.items()},
            {a.name: (np.array(a.values), a.unit) for own in axes.values() for a in own},
            {"x": float(self._x[ix]), "y": float(self._y[iy])},
            begun,
            time.time(),
        )

    def _pixel(self, x, y):
        return _nearest(self._y, y), _nearest(self._x, x)


def _metres(axis) -> np.ndarray:
    scale = nm_per(axis.unit)
    if scale is None:
        raise ValueError(f"{axis.name} is in {axis.unit!r}; a length is needed")
    return np.asarray(axis.values, dtype=float) * scale * 1e-9


def _nearest(values: np.ndarray, wanted) -> np.ndarray | np.integer:
    """The index of the pixel nearest to each wanted place, along an axis that goes up or down."""
    if not np.all(np.isfinite(wanted)):
        raise LimitError("a place is not finite")
    order = np.argsort(values)
    middles = (values[order][1:] + values[order][:-1]) / 2.0
    return order[np.searchsorted(middles, wanted)]
