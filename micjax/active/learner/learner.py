"""A learner: it suggests where to measure next, and takes in what came back.

The protocol is that of an optimiser of bluesky-adaptive (suggest, ingest, get_best_points,
register_suggestions, register_failures, should_stop, checkpoint), so that a learner drives a plan
there as it is. A suggestion is a pure function of the seed, the number of suggestions before, and
the data in their batches: a journal replays to the same suggestions.
"""

import dataclasses
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import qmc

from micjax.active.acquire import values as acquisition
from micjax.active.gp.mixture import mean_and_variance
from micjax.active.identity import told_apart
from micjax.active.learner import checkpoint, predictive
from micjax.active.learner.belief import Belief, Model, plain_model
from micjax.active.learner.cost import Cost, tour
from micjax.active.learner.predictive import Prediction
from micjax.active.learner.settings import Settings, number_at, point_count
from micjax.active.learner.signals import SD
from micjax.active.learner.space import RETURNED, Number, Space
from micjax.active.learner.suggesting import Choice
from micjax.core.names import unknown_name
from micjax.core.plain import scalar

log = logging.getLogger("micjax")

ID = "_id"
BEYOND = 0.1  # of its range: how far beyond an axis an instrument may arrive
NINETY = 1.6449  # standard deviations on both sides hold 90 % of a normal distribution

# identity, numbers along the axes, outcome, its standard deviation (NaN: not known)
Measured = tuple[Any, tuple[float, ...], float, float]


class Learner:
    """Bayesian optimisation, search, mapping or level finding over the axes of `space`.

    **Arguments:**

    - `space`: the axes, with candidates if only these points can be measured.
    - `outcome`: the key of the measured number in ingested points.
    - `goal`: `maximise` or `minimise` the outcome, `find` as many as possible of the `wanted`
        candidates where it is highest, `map` it, or find where it crosses `level`.
    - `acquisition`: of `learner.settings.ACQUISITIONS`; by default what suits the goal.
    - `initial`: how many points are spread evenly before the model is asked (default: 2 d + 1, at
        least 5).
    - `model`: how outcomes are modelled; by default two plain processes on robust scaled outcomes.
    - `cost`: what a measurement takes: a logarithmic acquisition is then compared for each second,
        from where the instrument is, and several points are suggested in the order of a short tour.
    - `seed`: of all random numbers.
    - `budget`: stop after so many measurements.
    - `tolerance`: stop when the improvement still expected anywhere is below this fraction of the
        standard deviation of the outcomes (goals `maximise` and `minimise`).
    - `file`: where `checkpoint` writes and `restore` reads.

    **Raises:** `ValueError` for an unknown goal or acquisition, or a level that is missing.
    """

    def __init__(
        self,
        space: Space,
        *,
        outcome: str = "y",
        goal: str = "maximise",
        acquisition: str | None = None,
        level: Number | None = None,
        wanted: int | np.integer | None = None,
        initial: int | np.integer | None = None,
        model: Model | None = None,
        cost: Cost | None = None,
        seed: int | np.integer = 0,
        budget: int | np.integer | None = None,
        tolerance: Number | None = None,
        file: str | os.PathLike | None = None,
    ):
        self.space, self.model = space, plain_model(space) if model is None else model
        given = outcome, goal, acquisition, level, wanted, initial, seed, budget, tolerance
        self.settings = Settings(*map(scalar, given)).checked(space, cost)
        self.cost, self.file = cost, None if file is None else pathlib.Path(file)
        self._batches: list[list[Measured]] = []
        self._pending: dict[Any, tuple[float, ...]] = {}
        self._failures: list[tuple[float, ...]] = []
        self._suggested = 0
        self._belief: Belief | None = None

    # --- data in -------------------------------------------------------------------------------

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Take in measured points: the axes (or the id of a suggestion) and the outcome of each.
        One without an id is the pending suggestion of the same settings, if there is one.

        An outcome that is NaN or infinite is a failure of that point and not a datum. Beside it,
        under the name of the outcome and `_sd`, may stand its standard deviation: data count as
        much as these say relative to each other, and what they all are times is found from the
        data. One without it counts as the median one of the others.

        **Raises:** `ValueError` for a point off the axes, without its outcome, or with something
        else in it; then none of the batch is taken.
        """
        waiting = dict(self._pending)
        batch = [self._read(point, waiting) for point in points]
        self._pending = waiting
        bad = [numbers for _, numbers, y, _ in batch if not math.isfinite(y)]
        if bad:
            message = "%d of %d outcomes are not finite: counted as failures"
            log.warning(message, len(bad), len(batch))
            self._failures += bad
        self._take([entry for entry in batch if math.isfinite(entry[2])])

    def _read(self, point: Mapping[str, Any], waiting: dict[Any, tuple[float, ...]]) -> Measured:
        """One point, which is taken from those `waiting`."""
        identity, outcome = scalar(point.get(ID)), self.settings.outcome
        if outcome not in point:
            raise ValueError(f"the point {dict(point)} has no outcome {outcome!r}")
        if not isinstance(identity, str | int | float | None):
            raise ValueError(f"the {ID} {identity!r} is neither a text nor a number")
        known = {ID, *self.space.names, outcome, outcome + SD}
        if wrong := [name for name in point if name not in known]:
            raise ValueError(unknown_name("part of a point", wrong[0], known - {ID}))
        numbers = self.space.numbers(self._readbacks(identity, point))
        identity = self._waiting_at(numbers, waiting) if identity is None else identity
        waiting.pop(identity, None)
        y, sd = (number_at(point, n) for n in (outcome, outcome + SD))
        if math.isfinite(y) and outcome + SD in point and not 0.0 < sd < math.inf:
            raise ValueError(f"{outcome + SD} is {sd:g}; a standard deviation above 0 is needed")
        return identity, numbers, y, sd

    def _readbacks(self, identity: Any, point: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where a suggestion was measured: what can only be chosen is as it was suggested, and an
        instrument that arrives a little beyond an end of an axis is at that end."""
        if identity not in self._pending:
            return point
        readback = self.space.settings(self._pending[identity])
        if self.space.candidates is None and set(self.space.names) <= set(point):
            for axis in (a for a in self.space.axes if not a.whole):
                value, beyond = float(point[axis.name]), BEYOND * (axis.upper - axis.lower)
                near = axis.lower - beyond <= value <= axis.upper + beyond
                readback[axis.name] = min(max(value, axis.lower), axis.upper) if near else value
        return readback

    def _waiting_at(
        self, numbers: tuple[float, ...], waiting: Mapping[Any, tuple[float, ...]]
    ) -> Any:
        """Which suggestion somebody means who does not say so: the one of these settings, but for
        rounding to float32."""
        near = RETURNED * np.maximum(np.abs(self.space.lower), np.abs(self.space.upper))
        for identity, suggested in waiting.items():
            if np.all(np.abs(np.subtract(suggested, numbers)) <= near):
                return identity
        return None

    def _take(self, batch: list[Measured]) -> None:
        if batch:
            self._batches.append(batch)
        points, y = self.data
        if not batch or len(y) < 2:
            return
        key = jax.random.fold_in(jax.random.key(self.settings.seed), len(y))
        errors = {"y_sd": self.outcome_sd} if np.isfinite(self.outcome_sd).any() else {}
        before, self._belief = self._belief, self.model(points, y, self._belief, key, **errors)
        if getattr(self._belief, "singular", False) and not getattr(before, "singular", False):
            text = "the kernel matrix of %d data is singular: distrust the smallest uncertainties"
            log.warning(text, len(y))

    @property
    def data(self) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n"]]:
        """All measured points and their outcomes, in the order they came."""
        points = np.asarray([numbers for _, numbers, *_ in self._measured], float)
        outcomes = np.asarray([y for *_, y, _ in self._measured], float)
        return points.reshape(-1, len(self.space.axes)), outcomes

    @property
    def outcome_sd(self) -> Float[np.ndarray, "n"]:
        """The standard deviations of the outcomes, NaN where none was told."""
        return np.asarray([sd for *_, sd in self._measured], float)

    @property
    def _measured(self) -> list[Measured]:
        return [entry for batch in self._batches for entry in batch]

    def register_suggestions(
        self, suggestions: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Make somebody else's points known as pending, each with an `_id`."""
        return [self._registered(self.space.numbers(point)) for point in suggestions]

    def _registered(self, numbers: Sequence[float]) -> dict[str, Any]:
        identity, self._suggested = self._suggested, self._suggested + 1
        self._pending[identity] = tuple(float(v) for v in numbers)
        return {ID: identity} | self.space.settings(numbers)

    def register_failures(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        """These suggestions could not be measured: stay away from them, and from their neighbours.

        **Raises:** `ValueError` for an id that is not pending and a point without its axes.
        """
        waiting, failed = dict(self._pending), []
        for suggestion in suggestions:
            identity = scalar(suggestion.get(ID))
            if identity in self._pending:
                numbers = self._pending[identity]
            else:
                numbers = self.space.numbers(suggestion)
                identity = self._waiting_at(numbers, waiting)
            waiting.pop(identity, None)
            failed.append(numbers)
        self._pending = waiting
        self._failures += failed

    # --- suggestions out -----------------------------------------------------------------------

    def suggest(self, num_points: int | None = None) -> list[dict[str, Any]]:
        """The points to measure next, `{"_id": ..., axis: setting}` each.

        **Raises:** `ValueError` when no candidate is left, or for no whole number of points.
        """
        count = 1 if num_points is None else point_count(num_points)
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 2**20 + self._suggested)
        chosen: list[tuple[float, ...]] = []
        while len(chosen) < count:
            known = len(self.data[1]) + len(self._pending) + len(chosen)
            if self._belief is None or known < self.settings.initial:
                chosen.append(self._spread(self._suggested + len(chosen), chosen))
            else:
                key, now = jax.random.split(key)
                chosen.append(self._choice(chosen).best(now))
        if self.cost is not None and len(chosen) > 1:
            order = tour(np.asarray(chosen), self._position(), np.asarray(self.cost.rates))
            chosen = [chosen[i] for i in order]
        return [self._registered(numbers) for numbers in chosen]

    def _position(self) -> Float[np.ndarray, "d"]:
        """Where the instrument is after all that was suggested: at first in the middle."""
        if self._pending:
            return np.asarray(list(self._pending.values())[-1])
        points, _ = self.data
        return points[-1] if len(points) else 0.5 * (self.space.lower + self.space.upper)

    def _spread(self, index: int, chosen: list[tuple[float, ...]]) -> tuple[float, ...]:
        """The next point of a scrambled Sobol sequence, or the free candidate nearest to it."""
        sequence = qmc.Sobol(len(self.space.axes), rng=self.settings.seed)
        if index:
            sequence.fast_forward(index)
        unit = sequence.random(1)
        if self.space.candidates is None:
            with jax.enable_x64(True):
                return tuple(np.asarray(self.space.box.uniform(jnp.asarray(unit)))[0].tolist())
        width = self.space.upper - self.space.lower
        distance = np.sum(((self.space.candidates - self.space.lower) / width - unit) ** 2, axis=1)
        free = self._free(chosen)
        return tuple(self.space.candidates[acquisition.best_allowed(-distance, free)[0]].tolist())

    def _choice(self, chosen: Sequence[tuple[float, ...]] = ()) -> Choice:
        return Choice(
            self.space,
            self.settings,
            self.cost,
            self.belief,
            *self.data,
            waiting=(*self._pending.values(), *chosen),
            failures=tuple(self._failures),
            position=self._position(),
        )

    def _free(self, chosen: Sequence[tuple[float, ...]] = ()) -> np.ndarray:
        """Which candidates are neither measured, nor pending, nor failed."""
        taken = {*self._pending.values(), *self._failures, *chosen}
        return self.space.free(taken | {tuple(row) for row in self.data[0].tolist()})

    # --- what is known -------------------------------------------------------------------------

    @property
    def belief(self) -> Belief:
        """What the learner believes now.

        **Raises:** `ValueError` before there are two data.
        """
        if self._belief is None:
            raise ValueError(f"{len(self.data[1])} data are too few for a model; two are needed")
        return self._belief

    def predict(self, points: Sequence[Mapping[str, Any]] | np.ndarray) -> Prediction:
        """What a measurement at these points would give; points as settings or `[m, d]` numbers."""
        if not isinstance(points, np.ndarray):
            points = np.asarray([self.space.numbers(point) for point in points])
        parts = self.belief.predicts(points)
        lower, median, upper = predictive.quantiles(parts, (0.05, 0.5, 0.95))
        return Prediction(median, lower, upper, predictive.uncertainty(parts))

    def reckoned(self, points: Float[np.ndarray, "m d"]) -> Prediction:
        """What a suggestion reckons with at these points: quicker than `predict`, with fewer draws
        of the hyper-parameters and on one scale."""
        mixture, scale = self.belief.mixture, self.belief.scale
        mean, variance = mean_and_variance(mixture, points)
        sd = NINETY * np.sqrt(mean_and_variance(mixture, points, noisy=True)[1])
        median, lower, upper = (scale.invert(z) for z in (mean, mean - sd, mean + sd))
        return Prediction(median, lower, upper, np.sqrt(variance))

    def uncertainty(self, points: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "m"]:
        """The standard deviation of the function that a suggestion reckons with, scaled."""
        numbers = np.asarray([self.space.numbers(point) for point in points])
        return np.sqrt(mean_and_variance(self.belief.mixture, numbers)[1])

    def acquisition_at(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m"]:
        """What the next measurement would be worth at these points."""
        return self._choice().worth(points)

    def get_best_points(self) -> list[tuple[Any, dict[str, Any], dict[str, float]]]:
        """The best measured point: its id, its settings, its outcome."""
        if not self._batches:
            return []
        identity, numbers, y, _ = max(self._measured, key=lambda row: self.settings.sign * row[2])
        return [(identity, self.space.settings(numbers), {self.settings.outcome: y})]

    def should_stop(self) -> tuple[bool, str | None]:
        """Whether to stop now, and why."""
        measured, budget = len(self.data[1]), self.settings.budget
        if budget is not None and measured >= budget:
            return True, f"the budget of {budget} measurements is used"
        if self.space.candidates is not None and not self._free().any():
            return True, "every candidate has been measured"
        tolerance, goal = self.settings.tolerance, self.settings.goal
        if tolerance is None or goal not in ("maximise", "minimise") or self._belief is None:
            return False, None
        if measured >= self.settings.initial and (gain := self._choice().gain()) < tolerance:
            return True, f"an improvement of {gain:.2g} standard deviations is expected at best"
        return False, None

    # --- keeping it ----------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write data, pending points and failures to `file`: all of it, or the old one stays.

        **Raises:** `ValueError` without a file; `OSError` when it cannot be written.
        """
        if self.file is None:
            raise ValueError("the learner was made without a file to write to")
        content = {
            "suggested": self._suggested,
            "batches": self._batches,
            "pending": list(self._pending.items()),
            "failures": self._failures,
        }
        checkpoint.write(self.file, self._identity(), content)

    def restore(self) -> None:
        """Take up what `checkpoint` wrote: the same suggestions follow as would have then.

        **Raises:** `FileNotFoundError`; `ValueError` for another file, or one of a learner with
        other axes, candidates, cost, model or settings.
        """
        content = checkpoint.read(self.file, self._identity())
        self._batches, self._belief = [], None
        self._failures = [tuple(row) for row in content["failures"]]
        self._pending = {identity: tuple(row) for identity, row in content["pending"]}
        self._suggested = content["suggested"]
        for batch in content["batches"]:  # one by one: each belief starts from the last
            self._take([(i, tuple(numbers), y, sd) for i, numbers, y, sd in batch])

    def _identity(self) -> dict[str, Any]:
        axes = [dataclasses.asdict(axis) for axis in self.space.axes]
        parts = {"candidates": self.space.candidates, "cost": self.cost, "model": self.model}
        return (
            {"axes": axes} | {n: told_apart(v) for n, v in parts.items()} | self.settings._asdict()
        )
