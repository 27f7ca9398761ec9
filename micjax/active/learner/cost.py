"""What a measurement takes: seconds of travel, settling and dwell, and dose; and short tours.

All axes move together, so the slowest one decides. A batch is measured along a short tour.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from micjax.active.acquire.batch import LogWeight
from micjax.core.precision import double

SHORTER = 1e-12  # what a change of the tour has to gain, relative to its length


class Cost(eqx.Module):
    """Seconds and dose of a measurement.

    **Arguments:**

    - `rates`: units of each axis per second; infinity for an axis whose travel takes no time.
    - `settle_s`: wait after every move. `dwell_s`: exposure of every point.
    - `dose_per_s`: of the exposure, in any unit (electrons / nm^2, J / m^2); 0 is not counted.

    **Raises:** `ValueError` for rates that are not positive, or negative times.
    """

    rates: Float[Array, "d"]
    settle_s: Float[Array, ""]
    dwell_s: Float[Array, ""]
    dose_per_s: Float[Array, ""]

    def __init__(
        self,
        rates: ArrayLike | Sequence[float | int],
        settle_s: ArrayLike = 0.0,
        dwell_s: ArrayLike = 0.0,
        dose_per_s: ArrayLike = 0.0,
    ):
        with jax.enable_x64(True):  # in float32 a short way far from 0 is lost
            self.rates = jnp.asarray(_rates(rates))
            others = dict(settle_s=settle_s, dwell_s=dwell_s, dose_per_s=dose_per_s)
            for name, value in others.items():
                if not (np.ndim(value) == 0 and np.isfinite(value) and value >= 0.0):
                    raise ValueError(f"{name} is {value}; it has to be a number from 0 on")
                setattr(self, name, jnp.asarray(value, float))

    @double
    def seconds(
        self, start: Float[ArrayLike, "... d"], points: Float[ArrayLike, "... d"]
    ) -> Float[Array, "..."]:
        """Of one measurement at each of the points, coming from `start`."""
        return travel_s(start, points, self.rates) + self.settle_s + self.dwell_s

    def route_s(self, start: Float[ArrayLike, "d"], route: Float[ArrayLike, "q d"]) -> float:
        """Of the measurements at all points of a route, in their order."""
        # on the host, where every number of points is as quick as the last one
        route = np.asarray(route, float)
        before = np.concatenate([np.asarray(start, float)[None], route[:-1]])
        legs = np.max(np.abs(route - before) / np.asarray(self.rates), axis=-1)
        return float(np.sum(legs + float(self.settle_s) + float(self.dwell_s)))

    def dose(self, points: int) -> float:
        """Of so many measurements."""
        return points * float(self.dwell_s * self.dose_per_s)


def travel(start: ArrayLike, points: ArrayLike, rates: ArrayLike) -> Float[Array, "..."]:
    """`travel_s` in the precision of its arguments: the part for inside jit."""
    return jnp.max(jnp.abs(points - start) / rates, axis=-1)


@double
def travel_s(
    start: Float[ArrayLike, "... d"],
    points: Float[ArrayLike, "... d"],
    rates: Float[ArrayLike, "d"],
) -> Float[Array, "..."]:
    """max_i |points_i - start_i| / rate_i: the axes move together."""
    return travel(jnp.asarray(start), jnp.asarray(points), rates)


def _rates(rates: ArrayLike | Sequence[float | int]) -> Float[np.ndarray, "d"]:
    rates = np.asarray(rates, float)
    if rates.ndim != 1 or not np.all(rates > 0.0):
        raise ValueError(f"the rates {rates.tolist()} are not one positive number for each axis")
    return rates


# --- tours -------------------------------------------------------------------------------------


def tour(
    points: Float[ArrayLike, "q d"], start: Float[ArrayLike, "d"], rates: Float[ArrayLike, "d"]
) -> Int[np.ndarray, "q"]:
    """The order of the points along a short open tour from `start`, which ends anywhere.

    Nearest neighbours first; then parts of the tour are reversed as long as that makes it shorter
    (2-opt; Croes 1958). It is never longer than the nearest neighbours' tour, and no reversal of a
    part shortens it; the shortest of all tours it is usually, and not always, for a few points.
    """
    points = np.asarray(points, float)
    if not len(points):
        return np.zeros(0, int)
    places = np.concatenate([np.asarray(start, float)[None], points])
    apart = _travel(places, places, rates)
    return _reversals(_nearest_neighbours(apart), apart)[1:] - 1


def _travel(a: np.ndarray, b: np.ndarray, rates: ArrayLike) -> Float[np.ndarray, "n m"]:
    return np.max(np.abs(a[:, None] - b) / _rates(rates), axis=-1)


def _nearest_neighbours(apart: Float[np.ndarray, "n n"]) -> Int[np.ndarray, "n"]:
    """From place 0 always to the nearest one left."""
    order, left = [0], np.ones(len(apart), bool)
    left[0] = False
    while left.any():
        places = np.flatnonzero(left)
        order.append(int(places[np.argmin(apart[order[-1], places])]))
        left[order[-1]] = False
    return np.array(order)


def _reversals(order: Int[np.ndarray, "n"], apart: Float[np.ndarray, "n n"]) -> np.ndarray:
    """Reverse parts of an open tour with a fixed beginning until no reversal makes it shorter."""
    order = order.copy()
    least = SHORTER * np.sum(apart[order[:-1], order[1:]])
    changed = True
    while changed:
        changed = False
        for i in range(len(order) - 2):
            # the part from i + 1 to each of `last`: the leg before it and, unless it is the end,
            # the leg after it are replaced
            last_kept, first, last = order[i], order[i + 1], order[i + 2 :]
            gain = apart[last_kept, first] - apart[last_kept, last]
            gain[:-1] += apart[last[:-1], last[1:]] - apart[first, last[1:]]
            j = int(np.argmax(gain))
            if gain[j] > least:
                order[i + 1 : i + j + 3] = order[i + 1 : i + j + 3][::-1]
                changed = True
    return order


def detour_s(
    start: Float[ArrayLike, "d"],
    route: Float[ArrayLike, "q d"],
    points: Float[ArrayLike, "m d"],
    rates: Float[ArrayLike, "d"],
) -> Float[np.ndarray, "m"]:
    """By how many seconds each point makes an open route longer, put in at its best place."""
    points = np.asarray(points, float)
    places = np.concatenate([np.asarray(start, float)[None], np.asarray(route, float)])
    to = _travel(places, points, rates)
    legs = np.diagonal(_travel(places[:-1], places[1:], rates))
    between = to[:-1] + to[1:] - legs[:, None]
    return np.min(np.concatenate([between, to[-1:]]), axis=0)


def per_second_of_detour(
    candidates: Float[ArrayLike, "m d"], start: Float[ArrayLike, "d"], cost: Cost
) -> LogWeight:
    """The `log_weight` of a batch that is worth most for each second: what the tour of those
    chosen becomes longer by, with settling and dwell."""
    candidates, rates = np.asarray(candidates, float), np.asarray(cost.rates)
    fixed = float(cost.settle_s + cost.dwell_s)

    def log_weight(chosen: Int[np.ndarray, "q"]) -> Float[np.ndarray, "m"]:
        route = candidates[chosen]
        route = route[tour(route, start, rates)]
        seconds = fixed + detour_s(start, route, candidates, rates)
        return -np.log(np.maximum(seconds, np.finfo(float).tiny))

    return log_weight


# --- budgets -----------------------------------------------------------------------------------


class Budget(NamedTuple):
    """What is left to be spent."""

    seconds: float = np.inf
    dose: float = np.inf

    def covers(self, cost: Cost, start: ArrayLike, route: Float[ArrayLike, "q d"]) -> bool:
        return cost.route_s(start, route) <= self.seconds and cost.dose(len(route)) <= self.dose

    def after(self, cost: Cost, start: ArrayLike, route: Float[ArrayLike, "q d"]) -> "Budget":
        """What is left when the route has been measured.

        **Raises:** `ValueError` when it costs more than is there.
        """
        seconds, dose = cost.route_s(start, route), cost.dose(len(route))
        if not self.covers(cost, start, route):
            raise ValueError(
                f"{len(route)} points take {seconds:.4g} s and a dose of {dose:.4g}; there are "
                f"{self.seconds:.4g} s and {self.dose:.4g} left"
            )
        return Budget(self.seconds - seconds, self.dose - dose)


def affordable_tour(
    points: Float[ArrayLike, "q d"], start: Float[ArrayLike, "d"], cost: Cost, budget: Budget
) -> Int[np.ndarray, "affordable"]:
    """The order of a tour of as many of the points, the best ones first, as the budget covers.

    **Arguments:**

    - `points`: in the order of their value, as the functions of `batch` choose them.
    """
    points = np.asarray(points, float)
    order, low, high = np.zeros(0, int), 0, len(points)
    count = high
    while count > low:  # bisection, from all of them on
        tried = tour(points[:count], start, cost.rates)
        if budget.covers(cost, start, points[tried]):
            order, low = tried, count
        else:
            high = count - 1
        count = (low + high + 1) // 2
    return order
