"""Where to measure next: all that decides a suggestion, and the best point by it."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.active.acquire import values as acquisition
from micjax.active.acquire.paths import draw_paths
from micjax.active.acquire.scalarise import spread
from micjax.active.acquire.search import maximise
from micjax.active.gp import mixture as mixtures
from micjax.active.gp.mixture import Mixture, mean_and_variance
from micjax.active.gp.observed import capacity_for
from micjax.active.learner.belief import Belief
from micjax.active.learner.cost import Cost
from micjax.active.learner.scores import SCORES, Context, paths_at, scores
from micjax.active.learner.settings import Settings
from micjax.active.learner.space import Space

SPREAD = 512  # points over which the maxima of draws are looked for
MEMBERS = 4  # states of which the maxima are drawn
MAXIMA = 16  # draws of the maximum of each, for the max-value entropy
NEARBY = 0.1  # of the gap between as many evenly spread points: what a failure bars
NOWHERE = 1e3  # in boxes, where free rows of a buffer are

Numbers = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is believed, what is known and what is on its way, when a point is suggested.

    **Arguments:**

    - `points`, `y`: what has been measured.
    - `waiting`: what will be.
    - `failures`: what could not be.
    - `position`: where the instrument is.
    """

    space: Space
    settings: Settings
    cost: Cost | None
    belief: Belief
    points: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, "n"]
    waiting: tuple[Numbers, ...]
    failures: tuple[Numbers, ...]
    position: Float[np.ndarray, "d"]

    def best(self, key: Array) -> Numbers:
        """The point to measure next.

        **Raises:** `ValueError` where none is left, or the acquisition is finite nowhere.
        """
        draw, climb = jax.random.split(key)
        numbers, value = self._highest(self.score, self._context(draw), climb)
        if not np.isfinite(value):
            raise ValueError(f"the acquisition {self.settings.acquisition} is finite nowhere")
        return numbers

    def gain(self) -> float:
        """The largest expected improvement, in standard deviations of the (scaled) outcomes."""
        key = jax.random.key(self.settings.seed)
        return float(np.exp(self._highest(SCORES["log_ei"], self._context(key), key)[1]))

    def worth(self, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m"]:
        """The acquisition at these points."""
        context = self._context(jax.random.key(self.settings.seed))
        return scores(self.score, points, self.mixture, context)

    @property
    def score(self):
        """The acquisition; while no outcome differs from another, how far all that is known is."""
        return SCORES["gap" if spread(self.y) == 0.0 else self.settings.acquisition]

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
        return self.space.free({*self.waiting, *self.failures, *map(tuple, self.points.tolist())})

    @functools.cached_property
    def mixture(self) -> Mixture:
        """What is believed as if what is waited for came out as predicted (Ginsbourger et al.
        2010), and what failed as the worst outcome so far: the process stays away from it, as far
        as the function is known to be smooth."""
        extra, worst = len(self.waiting) + len(self.failures), self._worst()
        mixture = mixtures.with_room(self.belief.mixture, extra)
        for numbers in self.failures:
            mixture = mixtures.imagined(mixture, numbers, worst)
        for numbers in self.waiting:
            mixture = mixtures.imagined(mixture, numbers)
        return mixture

    def _worst(self) -> float | None:
        """None where no outcome is better than another."""
        z, goal = self.belief.mixture.known, self.settings.goal
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
                best=mixtures.best_known(self.mixture, sign),
                level=jnp.asarray(self._level()),
                paths=paths,
                maxima=jnp.asarray(maxima, float),
                position=jnp.asarray(self.position),
                rates=jnp.asarray(np.full(len(space.axes), np.inf) if free else self.cost.rates),
                fixed_s=jnp.asarray(1.0 if free else self.cost.settle_s + self.cost.dwell_s),
                taken=jnp.asarray(taken),
                reach=jnp.asarray(reach),
                origin=jnp.asarray(space.lower),
                span=jnp.asarray(space.upper - space.lower),
            )

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
        return float(self.belief.scale.apply(np.asarray([level]))[0])

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
        best = np.argsort(-self.settings.sign * self.y, kind="stable")[:3]
        return self.points[np.resize(best, 3)]
