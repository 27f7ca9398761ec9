"""What a learner may set: named axes with units, whole numbers and categories among them."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from micjax.active.acquire.search import Box
from micjax.core.plain import scalar

Number = float | int | np.number
RESERVED = "_id"  # of a suggestion
FEW = 4096  # settings of whole numbers and categories, up to which all of them are candidates
RETURNED = 2.0**-22  # a setting that has been through float32 is off by no more, of the range


@dataclasses.dataclass(frozen=True)
class SearchAxis:
    """One axis of the settings.

    **Arguments:**

    - `lower`, `upper`: its range, ends included, in `unit`; of categories left out.
    - `whole`: only whole numbers.
    - `categories`: the names of its settings, for an axis that has no order: texts or numbers.

    **Raises:** `ValueError` for an empty range, less than two categories, two of one name, or what
    is neither a text nor a number.
    """

    name: str
    lower: Number = 0.0
    upper: Number = 1.0
    unit: str = ""
    whole: bool = False
    categories: tuple[Any, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "categories", tuple(scalar(c) for c in self.categories))
        if self.categories:
            if wrong := [c for c in self.categories if not isinstance(c, str | int | float)]:
                raise ValueError(f"axis {self.name}: {wrong} are neither texts nor numbers")
            if len(set(self.categories)) != len(self.categories) or len(self.categories) < 2:
                raise ValueError(f"axis {self.name}: categories {self.categories} are not distinct")
            object.__setattr__(self, "lower", 0.0)
            object.__setattr__(self, "upper", len(self.categories) - 1)
            object.__setattr__(self, "whole", True)
        object.__setattr__(self, "lower", float(self.lower))
        object.__setattr__(self, "upper", float(self.upper))
        if not (math.isfinite(self.lower) and math.isfinite(self.upper)):
            raise ValueError(f"axis {self.name} from {self.lower} to {self.upper} is not finite")
        if not self.lower < self.upper:
            raise ValueError(f"axis {self.name} from {self.lower} to {self.upper} is empty")

    def number(self, value: Any) -> float:
        """The setting as a number inside the range; of a category its index.

        **Raises:** `ValueError` for what is not on the axis.
        """
        if self.categories:
            if value not in self.categories:
                raise ValueError(f"axis {self.name}: {value!r}; there are {self.categories}")
            return float(self.categories.index(value))
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"axis {self.name}: {value!r} is no number") from None
        if not self.lower <= number <= self.upper:
            raise ValueError(
                f"axis {self.name}: {number:.6g} {self.unit} is outside "
                f"[{self.lower:.6g}, {self.upper:.6g}]"
            )
        if self.whole and number != round(number):
            raise ValueError(f"axis {self.name}: {number:.6g} is no whole number")
        return number

    def setting(self, number: float) -> Any:
        """The way back from `number`."""
        if self.categories:
            return self.categories[round(number)]
        return round(number) if self.whole else float(number)


class Space:
    """The axes together, and the candidates on them if not every point will do.

    Of whole numbers and categories only, every setting is a candidate, while they are no more than
    4,096.

    **Raises:** `ValueError` for no axis, two of one name, or candidates `[m, d]` of another shape
    or outside the axes.
    """

    def __init__(self, axes: Sequence[SearchAxis], candidates: np.ndarray | None = None):
        self.axes = tuple(axes)
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"the axes {names} are not distinct names")
        if RESERVED in names:
            raise ValueError(f"an axis {RESERVED!r}: by this name a suggestion is known")
        self.candidates = self._all() if candidates is None else self._checked(candidates)

    def _all(self) -> Float[np.ndarray, "m d"] | None:
        """Every setting, where they can be counted and are few."""
        if not self.countable or math.prod((self.upper - self.lower + 1.0).tolist()) > FEW:
            return None
        each = [np.arange(a.lower, a.upper + 1.0) for a in self.axes]
        return np.stack(np.meshgrid(*each, indexing="ij"), axis=-1).reshape(-1, len(each))

    def _checked(self, candidates: np.ndarray) -> np.ndarray:
        candidates = np.asarray(candidates, float)
        if candidates.ndim != 2 or candidates.shape[1] != len(self.axes) or not len(candidates):
            raise ValueError(
                f"candidates of shape {candidates.shape}, not [m, {len(self.axes)}] with m > 0"
            )
        inside = (candidates >= self.lower) & (candidates <= self.upper)
        if not inside.all():
            row = int(np.flatnonzero(~inside.all(axis=1))[0])
            raise ValueError(f"candidate {row}, {candidates[row].tolist()}, is outside the axes")
        return candidates

    @property
    def names(self) -> list[str]:
        return [axis.name for axis in self.axes]

    @property
    def lower(self) -> Float[np.ndarray, "d"]:
        return np.asarray([axis.lower for axis in self.axes], float)

    @property
    def upper(self) -> Float[np.ndarray, "d"]:
        return np.asarray([axis.upper for axis in self.axes], float)

    @property
    def countable(self) -> bool:
        """Whether there are only whole numbers and categories to choose from."""
        return all(axis.whole for axis in self.axes)

    @property
    def box(self) -> Box:
        return Box(self.lower, self.upper, [axis.whole for axis in self.axes])

    @property
    def categorical(self) -> tuple[int, ...]:
        return tuple(i for i, axis in enumerate(self.axes) if axis.categories)

    def numbers(self, point: Mapping[str, Any]) -> tuple[float, ...]:
        """The point `{axis: setting}` as numbers in the order of the axes.

        What is a candidate but for rounding to float32 is that candidate.

        **Raises:** `ValueError` when an axis is missing or a setting is not on it.
        """
        missing = [name for name in self.names if name not in point]
        if missing:
            raise ValueError(f"the point has no {', '.join(missing)}; its axes are {self.names}")
        return self._candidate(tuple(axis.number(point[axis.name]) for axis in self.axes))

    def free(self, taken: Collection[tuple[float, ...]]) -> Bool[np.ndarray, "m"]:
        """Which candidates are not among these."""
        return np.asarray([tuple(row) not in taken for row in self.candidates.tolist()])

    def _candidate(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        if self.candidates is None:
            return numbers
        off = np.abs(self.candidates - numbers)
        nearest = int(np.argmin(np.max(off / (self.upper - self.lower), axis=1)))
        largest = np.maximum(np.abs(self.lower), np.abs(self.upper))
        same = np.all(off[nearest] <= RETURNED * largest)
        return tuple(self.candidates[nearest].tolist()) if same else numbers

    def settings(self, numbers: Sequence[float] | np.ndarray) -> dict[str, Any]:
        """The point `{axis: setting}` of these numbers."""
        return {a.name: a.setting(v) for a, v in zip(self.axes, numbers, strict=True)}
