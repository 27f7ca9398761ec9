"""Where to measure next: all that decides a suggestion, and the best point by it."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.active.acquire import values as acquisition
from micjax.active.acquire.hypervolume import Boxes, boxes_beyond, pareto_front
from micjax.active.acquire.noisy import normals
from micjax.active.acquire.paths import draw_paths
from micjax.active.acquire.scalarise import spread
from micjax.active.acquire.search import maximise
from micjax.active.gp import mixture as mixtures
from micjax.active.gp.mixture import Mixture, mean_and_variance
from micjax.active.gp.observed import capacity_for
from micjax.active.gp.process import State
from micjax.active.learner.belief import Belief
from micjax.active.learner.cost import Cost
from micjax.active.learner.scores import (
    SCORES,
    Aim,
    Context,
    Limit,
    SettingRules,
    paths_at,
    scores,
    truths,
)
from micjax.active.learner.settings import Settings
from micjax.active.learner.space import Space
from micjax.active.outcomes import Outcomes

SPREAD = 512  # points over which the maxima of draws are looked for
MEMBERS = 4  # states of which the maxima are drawn
MAXIMA = 16  # draws of the maximum of each, for the max-value entropy
TRUTHS = 16  # draws of the function at the data by each state, for the noisy improvement
FINAL = 16  # points of the highest means, among which the knowledge gradient chooses in the end
NEARBY = 0.1  # of the gap between as many evenly spread points: what a failure bars
AGAIN = 8  # searches, after which rounding has put every point beyond a rule
SHOWN = 8  # points of a front, about which the search looks closely
NOWHERE = 1e3  # in boxes, where free rows of a buffer are

Numbers = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is believed, what is known and what is on its way, when a point is suggested.

    **Arguments:**

    - `beliefs`: about each outcome, the main one first.
    - `points`, `values`: what has been measured, each outcome a column.
    - `waiting`: what will be.
    - `failures`: what could not be.
    - `used`: suggestions that were measured, somewhere near.
    - `position`: where the instrument is.
    """

    space: Space
    settings: Settings
    cost: Cost | None
    outcomes: Outcomes
    beliefs: tuple[Belief, ...]
    points: Float[np.ndarray, "n d"]
    values: Float[np.ndarray, "n k"]
    waiting: tuple[Numbers, ...]
    failures: tuple[Numbers, ...]
    used: frozenset[Numbers]
    position: Float[np.ndarray, "d"]

    def best(self, key: Array) -> Numbers:
        """The point to measure next.

        **Raises:** `ValueError` where none is left, or the acquisition is finite nowhere.
        """
        draw, climb = jax.random.split(key)
        context = self._context(draw)
        for _ in range(AGAIN):
            numbers, value = self._highest(self.score, context, climb)
            if not np.isfinite(value):
                break
            if self.space.allowed(np.asarray([numbers]))[0]:
                return numbers
            climb, _ = jax.random.split(climb)  # a rule was kept but for rounding
        raise ValueError(f"the acquisition {self.settings.acquisition} is finite nowhere")

    def gain(self) -> float:
        """The largest expected improvement, in standard deviations of the (scaled) outcomes;
        infinite while nothing feasible is known."""
        if not self.known_feasible.any():
            return math.inf
        key = jax.random.key(self.settings.seed)
        return float(np.exp(self._highest(SCORES["log_ei"], self._context(key), key)[1]))

    def worth(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m"]:
        """The acquisition at these points."""
        context = self._context(jax.random.key(self.settings.seed))
        return scores(self.score, points, self.mixture, context)

    @property
    def score(self):
        """The acquisition; while no outcome differs from another, how far all that is known is;
        while nothing feasible is known, how probably a point is."""
        if not np.any(spread(self.values, axis=0) > 0.0):
            return SCORES["gap"]
        return SCORES[self.settings.acquisition if self.known_feasible.any() else "feasible"]

    def _highest(self, score, context: Context, key: Array) -> tuple[Numbers, float]:
        if self.space.candidates is not None:
            values = scores(score, self.space.candidates, self.mixture, context)
            row = acquisition.best_allowed(values, self.free)[0]
            return tuple(self.space.candidates[row].tolist()), float(values[row])
        arguments = self.mixture, context
        point, value = maximise(score, self.space.box, key, arguments, near=self.near)
        return tuple(np.asarray(point).tolist()), float(value)

    @functools.cached_property
    def free(self) -> np.ndarray:
        """Which candidates are neither measured, nor pending, nor failed."""
        measured = {*self.used, *map(tuple, self.points.tolist())}
        return self.space.free({*self.waiting, *self.failures, *measured})

    @functools.cached_property
    def mixture(self) -> Mixture:
        """What is believed of the main outcome."""
        return self._mixtures[0]

    @functools.cached_property
    def _mixtures(self) -> list[Mixture]:
        return [self._imagined(i) for i in range(len(self.beliefs))]

    def _imagined(self, index: int) -> Mixture:
        """What is believed as if what is waited for came out as predicted (Ginsbourger et al.
        2010), and what failed as the worst outcome so far: the process stays away from it, as far
        as the function is known to be smooth."""
        mixture = self.beliefs[index].mixture
        extra, worst = len(self.waiting) + len(self.failures), self._worst(index)
        mixture = mixtures.with_room(mixture, extra)
        for numbers in self.failures:
            mixture = mixtures.imagined(mixture, numbers, worst)
        for numbers in self.waiting:
            mixture = mixtures.imagined(mixture, numbers)
        return mixture

    def _worst(self, index: int) -> float | None:
        """None where no outcome is better than another."""
        z = self.beliefs[index].mixture.known
        goal = self.outcomes[index].goal if index else self.settings.goal
        low, high = float(z.min()), float(z.max())
        return {"maximise": low, "find": low, "minimise": high}.get(goal)

    # --- what the acquisition asks ---------------------------------------------------------------

    def _context(self, key: Array) -> Context:
        free, sign, space = self.cost is None, self.settings.sign, self.space
        paths, maxima = self._drawn(key)
        taken, reach = self._taken()
        with jax.enable_x64(True):
            return Context(
                sign=jnp.asarray(sign),
                best=mixtures.best_known(
                    self.mixture, sign, self.known_feasible if self.outcomes.limited else None
                ),
                repeats=jnp.asarray(float(space.candidates is None)),
                level=jnp.asarray(self._level()),
                paths=paths,
                maxima=jnp.asarray(maxima, float),
                truths=self._truths(),
                among=jnp.asarray(self._final()),
                position=jnp.asarray(self.position),
                rates=jnp.asarray(np.full(len(space.axes), np.inf) if free else self.cost.rates),
                fixed_s=jnp.asarray(1.0 if free else self.cost.settle_s + self.cost.dwell_s),
                taken=jnp.asarray(taken),
                reach=jnp.asarray(reach),
                origin=jnp.asarray(space.lower),
                span=jnp.asarray(space.upper - space.lower),
                rules=SettingRules(space.rules, tuple(space.names)),
                limits=self._limits(),
                objectives=self._objectives[1:] if self.outcomes.several else (),
                boxes=self._boxes() if self.outcomes.several else None,
            )

    def _limits(self) -> tuple[Limit, ...]:
        limits = []
        for i in self.outcomes.limited:
            outcome, scale = self.outcomes[i], self.beliefs[i].scale
            ends = (
                None if end is None else jnp.asarray(float(scale.apply(np.asarray([end]))[0]))
                for end in (outcome.at_least, outcome.at_most)
            )
            limits.append(Limit(self._mixtures[i], *ends))
        return tuple(limits)

    @property
    def _objectives(self) -> tuple[Aim, ...]:
        which = zip(self.outcomes.objectives, self.outcomes.signs, strict=True)
        return tuple(Aim(self._mixtures[i], jnp.asarray(sign)) for i, sign in which)

    @functools.cached_property
    def _known_means(self) -> Float[np.ndarray, "k n"]:
        """Of every outcome where something is known, on the scale of each."""
        known = np.asarray(self.mixture.observed.points)[: self.mixture.observed.measured]
        return np.asarray([mean_and_variance(m, known)[0] for m in self._mixtures])

    @functools.cached_property
    def known_feasible(self) -> np.ndarray:
        """Where what is known keeps all limits, more probably than not."""
        kept = np.ones(self.mixture.observed.measured, bool)
        for i in self.outcomes.limited:
            outcome, scale, mean = self.outcomes[i], self.beliefs[i].scale, self._known_means[i]
            lower, upper = scale.apply(np.asarray([outcome.lower, outcome.upper]))
            kept &= (lower <= mean) & (mean <= upper)
        return kept

    def _boxes(self) -> Boxes:
        """Beyond the front of what is believed of all that is known: data are noisy."""
        signs, which = self.outcomes.signs, self.outcomes.objectives
        scales = [self.beliefs[i].scale for i in which]
        reference = self.outcomes.reference(self.values)
        ends = [float(s.apply(np.asarray([r]))[0]) for s, r in zip(scales, reference, strict=True)]
        means = (self._known_means[which] * signs[:, None]).T[self.known_feasible]
        front = means[pareto_front(means)]
        return boxes_beyond(front[None], signs * ends)

    def _drawn(self, key: Array):
        """A draw of the function, for Thompson sampling, or draws of its maximum."""
        if self.settings.acquisition not in ("thompson", "mes"):
            return None, np.zeros(1)
        which, first, second = jax.random.split(key, 3)
        weights = np.asarray(self.mixture.log_weight)
        if self.settings.acquisition == "thompson":
            row = int(jax.random.categorical(which, weights))
            return draw_paths(mixtures.member(self.mixture, row), first, 1), np.zeros(1)
        rows = np.asarray(jax.random.categorical(which, weights, shape=(MEMBERS,)))
        some, keys = self._some(second), jax.random.split(first, MEMBERS)
        drawn = [
            np.asarray(paths_at(draw_paths(mixtures.member(self.mixture, int(i)), k, MAXIMA), some))
            for i, k in zip(rows, keys, strict=True)
        ]
        return None, np.max(self.settings.sign * np.concatenate(drawn), axis=1)

    def _truths(self):
        """Draws of the function at the data, for the noisy improvement.

        **Raises:** `ValueError` for processes that are not solved exactly.
        """
        chosen = self.settings.acquisition
        if chosen not in ("noisy_ei", "knowledge_gradient"):
            return None
        if not all(isinstance(part, State) for part in self.mixture.parts):
            raise ValueError(f"acquisition {chosen!r} wants processes that are solved exactly")
        if chosen == "knowledge_gradient":
            return None
        z = normals(TRUTHS, self.mixture.parts[0].y.shape[-1])
        return truths(self.mixture, z, self.settings.sign)

    def _final(self) -> Float[np.ndarray, "k d"]:
        """Known points of the highest means, of few of them some more than once."""
        if self.settings.acquisition != "knowledge_gradient":
            return self.points[:1]
        known = np.asarray(self.mixture.observed.points)[: self.mixture.observed.measured]
        mean, _ = mean_and_variance(self.mixture, known)
        return known[np.resize(np.argsort(-self.settings.sign * mean), FINAL)]

    def _some(self, key: Array) -> Float[np.ndarray, "m d"]:
        """Points over which the maxima of draws are looked for."""
        if self.space.candidates is not None:
            return self.space.candidates
        with jax.enable_x64(True):
            unit = jax.random.uniform(key, (SPREAD, len(self.space.axes)))
            return np.concatenate([np.asarray(self.space.box.uniform(unit)), self.near])

    def _level(self) -> float:
        """On the scale of the states; NaN where there is no need for it."""
        if self.settings.acquisition == "among_best":
            mean, variance = mean_and_variance(self.mixture, self.space.candidates, noisy=True)
            return acquisition.level_of_best(
                mean[self.free],
                np.sqrt(variance[self.free]),
                self.mixture.known,
                self.settings.wanted,
            )
        level = math.nan if self.settings.level is None else self.settings.level
        return float(self.beliefs[0].scale.apply(np.asarray([level]))[0])

    def _taken(self) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, "k"]]:
        """All that is known as fractions of the box, and how far around it nothing is suggested:
        where only whole numbers and categories can be set, nowhere twice; elsewhere a repeat may
        be worth it, but of a failure."""
        known = [*self.failures, *self.waiting, *map(tuple, self.points.tolist())]
        count, failed = len(known), len(self.failures)
        taken = np.full((capacity_for(count), len(self.space.axes)), NOWHERE)
        reach = np.full(len(taken), -1.0)
        lower, upper = self.space.lower, self.space.upper
        taken[:count] = (np.asarray(known) - lower) / (upper - lower)
        reach[:count] = 0.0 if self.space.countable else -1.0
        if self.space.candidates is None:
            reach[:failed] = NEARBY * count ** (-1.0 / len(lower))
        return taken, reach

    @property
    def near(self) -> Float[np.ndarray, "k d"]:
        """The best points so far, about which the search looks closely."""
        if self.outcomes.several and len(front := self.outcomes.front(self.values)):
            spread_out = np.linspace(0, len(front) - 1, SHOWN).round().astype(int)
            return self.points[front[spread_out]]
        return self.points[np.resize(self.outcomes.order(self.values)[:3], 3)]
