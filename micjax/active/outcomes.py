"""Several outcomes of one measurement, by name: what is wanted of each, and how well it is kept.

One or more are maximised or minimised; others only have to stay within limits. What keeps all
limits is feasible. Of two or three objectives no single point is best: the front is what is left.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from micjax.active.acquire.hypervolume import hypervolume, pareto_front
from micjax.active.acquire.scalarise import spread
from micjax.core.names import unknown_name

SIGNS = {"maximise": 1.0, "minimise": -1.0}
MOST = 3  # objectives
BEYOND = 0.1  # of the extent of the front, by which a derived reference is worse than its worst


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is wanted of one outcome, in its own unit.

    **Arguments:**

    - `goal`: `maximise` or `minimise` it, or neither.
    - `at_least`, `at_most`: the limits within which a point is feasible.
    - `reference`: the least that is of use of an objective beside another one. By default the worst
        on the front, and a tenth of the extent of the front beyond.

    **Raises:** `ValueError` for another goal, numbers that are not finite, or limits between which
    there is nothing.
    """

    goal: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    reference: float | None = None

    def __post_init__(self):
        if self.goal is not None and self.goal not in SIGNS:
            raise ValueError(f"goal {self.goal!r} of an outcome; there are {', '.join(SIGNS)}")
        for name in ("at_least", "at_most", "reference"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; a finite number is needed")
        if self.limited and not self.lower < self.upper:
            raise ValueError(f"at_least {self.lower:g} is not below at_most {self.upper:g}")

    @property
    def limited(self) -> bool:
        return self.at_least is not None or self.at_most is not None

    @property
    def lower(self) -> float:
        return -math.inf if self.at_least is None else self.at_least

    @property
    def upper(self) -> float:
        return math.inf if self.at_most is None else self.at_most


Wanted = Mapping[str, Wish | Mapping[str, Any]]


class Outcomes:
    """The outcomes of a search by name, the main one first.

    **Arguments:**

    - `main`: the name of the outcome that `goal` is about.
    - `wanted`: what is wanted of others; under the name of the main one its limits and reference.
    - `taken`: names that no outcome may have.

    **Raises:** `ValueError` for names or wishes that do not fit each other.
    """

    def __init__(self, main: str, goal: str, wanted: Wanted, taken: Sequence[str] = ()):
        given = {name: _outcome(name, outcome) for name, outcome in wanted.items()}
        own = given.pop(main, Wish())
        if own.goal not in (None, goal):
            raise ValueError(f"the goal of {main!r} is {goal!r}, and {own.goal!r} among outcomes")
        self.goal = goal
        self.by_name = {main: dataclasses.replace(own, goal=goal if goal in SIGNS else None)}
        self.by_name |= given
        for name, outcome in given.items():
            if not isinstance(name, str) or not name or name in taken or f"{main}_sd" == name:
                raise ValueError(f"an outcome cannot be called {name!r}; this name is taken")
            if outcome.goal is None and not outcome.limited:
                raise ValueError(f"outcome {name!r} has neither a goal nor at_least nor at_most")
        for name, outcome in self.by_name.items():
            if outcome.reference is not None and (outcome.goal is None or not self.several):
                raise ValueError(f"a reference of {name!r}, which is not one of several objectives")
        if goal not in SIGNS and any(outcome.goal for outcome in given.values()):
            raise ValueError(
                f"the goal {goal!r} beside other objectives; there are {', '.join(SIGNS)}"
            )
        if len(self.objectives) > MOST:
            raise ValueError(f"{len(self.objectives)} objectives; at most {MOST} are possible")

    @property
    def names(self) -> list[str]:
        return [*self.by_name]

    @property
    def plain(self) -> bool:
        """Whether there is one outcome without limits."""
        return len(self.by_name) == 1 and not self.limited

    @property
    def objectives(self) -> list[int]:
        """Which outcomes are maximised or minimised."""
        return [i for i, o in enumerate(self.by_name.values()) if o.goal is not None]

    @property
    def several(self) -> bool:
        return len(self.objectives) > 1

    @property
    def limited(self) -> list[int]:
        """Which outcomes have limits."""
        return [i for i, o in enumerate(self.by_name.values()) if o.limited]

    def __getitem__(self, index: int) -> Wish:
        return list(self.by_name.values())[index]

    def index(self, name: str) -> int:
        """**Raises:** `ValueError` for a name that no outcome has."""
        if name not in self.by_name:
            raise ValueError(unknown_name("outcome", name, self.names))
        return self.names.index(name)

    @property
    def signs(self) -> Float[np.ndarray, "objectives"]:
        return np.asarray([SIGNS[self[i].goal] for i in self.objectives])

    def signed(self, values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n objectives"]:
        """The objectives, of which more is better."""
        return values[:, self.objectives] * self.signs

    def feasible(self, values: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, "n"]:
        """Which values keep all limits."""
        return self.excess(values) == 0.0

    def excess(self, values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
        """How far beyond the limits, in standard deviations of what was measured, added up."""
        total = np.zeros(len(values))
        for i in self.limited:
            column, outcome = values[:, i], self[i]
            beyond = np.maximum(outcome.lower - column, column - outcome.upper)
            total += np.maximum(beyond, 0.0) / (float(spread(column)) or 1.0)
        return total

    def order(self, values: Float[np.ndarray, "n k"]) -> Int[np.ndarray, "n"]:
        """The rows by the main outcome, the best first; before all those that keep the limits."""
        sign = -1.0 if self.goal == "minimise" else 1.0
        return np.lexsort((-sign * values[:, 0], self.excess(values)))

    def front(self, values: Float[np.ndarray, "n k"]) -> Int[np.ndarray, "p"]:
        """Which feasible values no other feasible one dominates, in the order of the first one."""
        rows = np.flatnonzero(self.feasible(values))
        if not len(rows):
            return rows
        rows = rows[pareto_front(self.signed(values)[rows])]
        return rows[np.argsort(values[rows, self.objectives[0]], kind="stable")]

    def reference(self, values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "objectives"]:
        """What the volume is counted from, in the units of the objectives."""
        rows = self.front(values)
        signed = self.signed(values)
        known = signed[rows] if len(rows) else signed
        extent = np.ptp(known, axis=0)
        extent = np.where(extent > 0.0, extent, np.ptp(signed, axis=0))
        extent = np.where(extent > 0.0, extent, np.abs(known).max(axis=0))
        derived = self.signs * (known.min(axis=0) - BEYOND * extent)
        given = [self[i].reference for i in self.objectives]
        return np.asarray([d if g is None else g for g, d in zip(given, derived, strict=True)])

    def volumes(self, values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
        """The volume between the reference and the front after each of the measurements."""
        reference = self.signs * self.reference(values)
        signed, feasible = self.signed(values), self.feasible(values)
        useful = feasible & np.all(signed > reference, axis=1)
        volumes, last = np.zeros(len(values)), 0.0
        for i in range(len(values)):
            if useful[i]:
                known = signed[: i + 1][useful[: i + 1]]
                last = hypervolume(known[pareto_front(known)], reference)
            volumes[i] = last
        return volumes

    def told(self, values: Float[np.ndarray, "n k"]) -> list[str]:
        """Sentences about what is feasible, and about the front."""
        lines, feasible = [], self.feasible(values)
        if self.limited:
            limits = "; ".join(_limits(self.names[i], self[i]) for i in self.limited)
            lines.append(f"{int(feasible.sum())} of {len(values)} points are feasible: {limits}.")
        if self.several and feasible.any():
            derived = any(self[i].reference is None for i in self.objectives)
            beyond = ", ".join(
                f"{self.names[i]} = {r:.6g}"
                for i, r in zip(self.objectives, self.reference(values), strict=True)
            )
            lines.append(
                f"The front has {len(self.front(values))} points; hypervolume "
                f"{self.volumes(values)[-1]:.6g} beyond {beyond}"
                f"{' (derived from the data)' if derived else ''}."
            )
        return lines


def _outcome(name: str, given: Wish | Mapping[str, Any]) -> Wish:
    if isinstance(given, Wish):
        return given
    known = [field.name for field in dataclasses.fields(Wish)]
    if wrong := [key for key in given if key not in known]:
        raise ValueError(f"outcome {name!r}: {unknown_name('key', wrong[0], known)}")
    return Wish(**given)


def _limits(name: str, outcome: Wish) -> str:
    sides = {"at least": outcome.at_least, "at most": outcome.at_most}
    return f"{name} " + " and ".join(f"{s} {v:.6g}" for s, v in sides.items() if v is not None)
