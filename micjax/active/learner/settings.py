"""What decides the suggestions of a learner beside the data."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from micjax.active.learner.cost import Cost
from micjax.active.learner.signals import SD
from micjax.active.learner.space import RESERVED, Space
from micjax.active.outcomes import Outcomes
from micjax.core.plain import scalar
from micjax.core.ranges import check_ranges

GOALS = {
    "maximise": "log_ei",
    "minimise": "log_ei",
    "find": "among_best",
    "map": "uncertainty",
    "level": "straddle",
}
LOGARITHMIC = (
    "log_ei",
    "noisy_ei",
    "knowledge_gradient",
    "pi",
    "among_best",
    "uncertainty",
    "mes",
    "hypervolume",
)
LIMITED = ("log_ei", "pi", "among_best", "uncertainty", "hypervolume")  # which limits can weigh
ACQUISITIONS = (*LOGARITHMIC, "ucb", "thompson", "straddle")

Told = tuple[float, float]  # an outcome and its standard deviation (NaN: not known)
# identity, numbers along the axes, the main outcome, its standard deviation, further outcomes
Measured = tuple[Any, tuple[float, ...], float, float, tuple[Told, ...]]


class Settings(NamedTuple):
    """See `Learner`."""

    outcome: str
    goal: str
    acquisition: str | None
    level: float | None
    wanted: int | None
    initial: int | None
    seed: int
    budget: int | None
    tolerance: float | None

    @property
    def sign(self) -> float:
        """-1 where low outcomes are wanted."""
        return -1.0 if self.goal == "minimise" else 1.0

    def checked(self, space: Space, cost: Cost | None, outcomes: Outcomes) -> "Settings":
        """The settings, complete.

        **Raises:** `ValueError` where they do not fit each other.
        """
        goal, outcome, level, wanted = self.goal, self.outcome, self.level, self.wanted
        if not isinstance(outcome, str) or outcome in ("", RESERVED):
            raise ValueError(f"outcome is {outcome!r}; a name is needed, other than {RESERVED!r}")
        for name in ("level", "tolerance", "seed"):
            check_ranges(name, getattr(self, name))
        for name in ("wanted", "initial", "budget"):  # 0: at once
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 0):
                raise ValueError(f"{name} is {value}; a whole number from 0 on is needed")
        if goal not in GOALS:
            raise ValueError(f"goal {goal!r}; there are {', '.join(GOALS)}")
        usual = "hypervolume" if outcomes.several else GOALS[goal]
        chosen = usual if self.acquisition is None else self.acquisition
        if chosen not in ACQUISITIONS:
            raise ValueError(f"acquisition {chosen!r}; there are {', '.join(ACQUISITIONS)}")
        if chosen == "straddle" and level is None:
            raise ValueError("the goal 'level' needs the level")
        if chosen == "among_best" and (space.candidates is None or not wanted or wanted < 1):
            raise ValueError("the goal 'find' needs candidates and how many of them are wanted")
        if outcome in space.names:
            raise ValueError(f"the outcome has the name of an axis, {outcome!r}")
        if (chosen == "hypervolume") != outcomes.several:
            raise ValueError(f"acquisition {chosen!r} is for several objectives, and no other is")
        if outcomes.several and self.tolerance is not None:
            raise ValueError("a tolerance is of one objective; several end with the budget")
        if outcomes.limited and chosen not in LIMITED:
            raise ValueError(
                f"acquisition {chosen!r} cannot be weighed by limits; there are "
                f"{', '.join(LIMITED)}"
            )
        if cost is not None and chosen not in LOGARITHMIC:
            raise ValueError(
                f"acquisition {chosen!r} cannot be weighed by seconds; "
                f"there are {', '.join(LOGARITHMIC)}"
            )
        if cost is not None and cost.rates.shape != (len(space.axes),):
            raise ValueError(f"{cost.rates.size} rates for {len(space.axes)} axes")
        initial = max(5, 2 * len(space.axes) + 1) if self.initial is None else self.initial
        return self._replace(acquisition=chosen, initial=initial)


def number_at(point: Mapping[str, Any], name: str) -> float:
    """What stands there; NaN for nothing.

    **Raises:** `ValueError` for what is no number.
    """
    try:
        return float(point.get(name, math.nan))
    except (TypeError, ValueError):
        raise ValueError(f"outcome {name!r} is {point[name]!r}, no number") from None


def point_count(number: Any) -> int:
    """How many points are asked for.

    **Raises:** `ValueError` for no whole number from 1 on.
    """
    count = scalar(number)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{number} points; a whole number from 1 on is needed")
    return count


def told_of(point: Mapping[str, Any], name: str) -> Told:
    """An outcome of a point, and its standard deviation.

    **Raises:** `ValueError` for what is no number, or a standard deviation that is not above 0.
    """
    y, sd = number_at(point, name), number_at(point, name + SD)
    if math.isfinite(y) and name + SD in point and not 0.0 < sd < math.inf:
        raise ValueError(f"{name + SD} is {sd:g}; a standard deviation above 0 is needed")
    return y, sd


def all_finite(entry: Measured) -> bool:
    """Whether every outcome is a number."""
    *_, y, _, others = entry
    return all(math.isfinite(value) for value in (y, *(value for value, _ in others)))


def as_measured(identity: Any, numbers: Any, y: float, sd: float, others: Any = ()) -> Measured:
    """A row of a file, where tuples are lists."""
    return identity, tuple(numbers), y, sd, tuple((value, error) for value, error in others)
