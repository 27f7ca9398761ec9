"""What a learner may set: named axes with units, whole numbers and categories among them."""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import qmc

from micjax.active.acquire.search import Box
from micjax.active.rules import Allows, allowed_on_host, rule_of
from micjax.core.plain import scalar

Number = float | int | np.number
RESERVED = "_id"  # of a suggestion
FEW = 4096  # settings of whole numbers and categories, up to which all of them are candidates
TRIED = 2**14  # settings, of which rules have to allow one
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

    **Arguments:**

    - `rules`: what is known about which settings are allowed: texts as `x + 2 * y <= 1`, or
        functions of the axes by name (arrays of JAX; of a category its index) that are true where
        it is allowed. Nothing else is ever suggested.

    **Raises:** `ValueError` for no axis, two of one name, candidates `[m, d]` of another shape
    or outside the axes, or rules that cannot be read or allow nothing.
    """

    def __init__(
        self,
        axes: Sequence[SearchAxis],
        candidates: np.ndarray | None = None,
        rules: Sequence[str | Allows] = (),
    ):
        self.axes = tuple(axes)
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"the axes {names} are not distinct names")
        if RESERVED in names:
            raise ValueError(f"an axis {RESERVED!r}: by this name a suggestion is known")
        self.candidates = self._all() if candidates is None else self._checked(candidates)
        ordered = [axis.name for axis in self.axes if not axis.categories]
        self.rules = tuple(rule_of(r, ordered) if isinstance(r, str) else r for r in rules)
        if self.rules and not self.allowed(self._tried()).any():
            raise ValueError(f"the rules {[*map(str, self.rules)]} allow no setting of the axes")

    def _tried(self) -> Float[np.ndarray, "m d"]:
        """All settings, or many that are spread evenly."""
        return self._carried(self.even(0, TRIED, 0)) if self.candidates is None else self.candidates

    def even(self, start: int, count: int, seed: int) -> Float[np.ndarray, "count d"]:
        """Some of a scrambled Sobol sequence in the unit cube."""
        sequence = qmc.Sobol(len(self.axes), rng=seed)
        if start:
            sequence.fast_forward(start)
        return sequence.random(count)

    def spread(self, index: int, seed: int) -> tuple[float, ...]:
        """The setting of this index of those of the sequence that the rules allow.

        **Raises:** `ValueError` where they allow too few of them.
        """
        if not self.rules:
            return tuple(self._carried(self.even(index, 1, seed))[0].tolist())
        points = self._carried(self.even(0, 2 * TRIED, seed))
        points = points[self.allowed(points)]
        if index >= len(points):
            raise ValueError(f"of {2 * TRIED} settings the rules allow {len(points)}, too few")
        return tuple(points[index].tolist())

    def _carried(self, unit: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        with jax.enable_x64(True):
            return np.asarray(self.box.uniform(jnp.asarray(unit)))

    def allowed(self, points: Float[np.ndarray, "m d"]) -> Bool[np.ndarray, "m"]:
        """Which of these settings the rules allow."""
        if not self.rules:
            return np.ones(len(points), bool)
        return allowed_on_host(self.rules, self.names, points)

    def check_allowed(self, numbers: Sequence[float]) -> None:
        """**Raises:** `ValueError` for a setting that the rules do not allow."""
        for rule in self.rules:
            if not allowed_on_host([rule], self.names, np.asarray([numbers]))[0]:
                raise ValueError(f"{self.settings(numbers)} is not allowed: the rule is {rule}")

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
        """Which allowed candidates are not among these."""
        free = self._allowed_candidates.copy()
        for numbers in taken:
            free[self.rows(numbers)] = False
        return free

    def rows(self, numbers: Sequence[float]) -> Int[np.ndarray, "k"]:
        """Which candidates are at these numbers, exactly."""
        order, sorted_first = self._by_first
        low = np.searchsorted(sorted_first, numbers[0], "left")
        high = np.searchsorted(sorted_first, numbers[0], "right")
        near = order[low:high]
        return near[np.all(self.candidates[near] == numbers, axis=1)]

    @functools.cached_property
    def _allowed_candidates(self) -> Bool[np.ndarray, "m"]:
        return self.allowed(self.candidates)

    @functools.cached_property
    def _by_first(self) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m"]]:
        """The order of the candidates along the first axis, and where they are there: of a million
        of them not each is looked at."""
        order = np.argsort(self.candidates[:, 0], kind="stable")
        return order, self.candidates[order, 0]

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
