"""How many peaks a pixel has: each number is fitted, and the evidence chooses."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from micjax.core.problem import InverseProblem
from micjax.inference.maps.blocks.block import Pursuit
from micjax.inference.maps.blocks.fits import Fits
from micjax.inference.maps.each import one_pixel, pixel_name
from micjax.inference.maps.result import MapFit, most_likely
from micjax.inference.maps.rows import inside, moved_inside
from micjax.inference.maps.stage import EVERY_S
from micjax.inference.maps.status import STATUS, UNUSABLE
from micjax.inference.stage import Arrays, Search
from micjax.problems.peaks.pursuit import pursued
from micjax.problems.peaks.setting import with_lines

NUMBER, PROBABILITY = "number of peaks", "probability of the number"
NOTHING = 1e-9  # of the level: the height of a line that is not there


def choose_number(
    starts: Callable[..., Mapping[str, np.ndarray]], *, steps: int, neighbours: int
) -> Search:
    """Fits of each number of lines, the fewest first, and of each pixel the most likely.

    Besides its own `starts` a fit begins from that with fewer lines and the largest peak in what
    is left of it: a second line on the shoulder of the first is no maximum of a spectrum.
    """

    def work(problem: InverseProblem, x, y, key, report, before: Arrays) -> Iterator[Arrays]:
        pixel, _ = one_pixel(problem)
        numbers = pixel.forward.numbers
        priors = {n.removeprefix("forward."): p for n, p in pixel.priors.items()}
        if apart := told_apart(pixel.forward.names(), priors):
            raise ValueError(
                f"{apart} has another prior than the others: the number can be chosen of peaks "
                "that may change places"
            )
        x, y = np.asarray(x), np.asarray(y)
        fits: dict[int, MapFit] = {}
        kept: Arrays = {}
        for k in numbers:
            own, of = with_lines(pixel, k), f"{k} lines: "
            stored = {n.removeprefix(of): a for n, a in before.items() if n.startswith(of)}
            if not stored:
                given = [moved_inside(own, starts(own, x, y))]
                if fits:
                    given.append(_one_more(own, x, y, fits[max(fits)], k - max(fits)))
                heights = tuple(n for n in own.priors if n.endswith(".height"))
                how = Pursuit(heights, neighbours, steps, covariance=True)
                run = Fits(own, x, y, given, how=how)
                if "done" in before:
                    run.restore(before)
                    before = {}
                last = -np.inf
                for done in run.run():
                    share = (numbers.index(k) + min(done / run.fits, 1.0)) / len(numbers)
                    report(share, f"{k} peak{'s' * (k != 1)}: {done} of {run.fits} fits")
                    if time.monotonic() - last > EVERY_S:
                        last = time.monotonic()
                        yield kept | run.state()
                stored = run.result().rows()
            fits[k] = MapFit.of_rows(stored, y.shape[:2])
            kept |= {f"{of}{n}": a for n, a in stored.items()}
            yield kept | stored
        chosen = _chosen(pixel, fits)
        rows = _in_places(pixel, chosen.fit).rows()
        yield {NUMBER: chosen.number, PROBABILITY: chosen.probability} | rows

    return Search(work, _with_fits, "map", goes_on=True)


def told_apart(lines: Sequence[str], priors: Mapping[str, dist.Distribution]) -> str | None:
    """The first line whose priors, called `peak_2.centre` and so on, are not those of the first."""

    def own(line: str) -> dict[str, dist.Distribution]:
        of = f"{line}."
        return {n.removeprefix(of): p for n, p in priors.items() if n.startswith(of)}

    def alike(a: dist.Distribution | None, b: dist.Distribution | None) -> bool:
        return type(a) is type(b) and all(map(np.array_equal, *map(jax.tree.leaves, (a, b))))

    first, *others = lines
    for line in others:
        ours, theirs = own(first), own(line)
        if not all(alike(ours.get(n), theirs.get(n)) for n in ours | theirs):
            return line
    return None


def _one_more(
    pixel: InverseProblem, x: np.ndarray, y: np.ndarray, fit: MapFit, more: int
) -> dict[str, np.ndarray]:
    """The fit with fewer lines, and `more` of them where what is left of it stands out most."""
    fewer = with_lines(pixel, len(pixel.forward.names()) - more)
    mean, variance = (np.asarray(a, float) for a in _moments(fewer, jnp.asarray(x), fit.values))
    seen = np.isfinite(y) & np.isfinite(mean)
    rest = np.where(seen, y - mean, 0.0)
    variance = np.where(seen, variance, 0.0)
    out = dict(fit.values)
    least = 1e-3 * float(np.nanpercentile(np.abs(y), 99.9)) or 1.0
    out |= pursued(rest, variance, pixel.forward.names()[-more:], x, least)
    own, unknowns = pixel.values(), pixel.unknowns()
    given = {}
    for name, prior in unknowns.items():
        if name in out:
            value = out[name].ravel()
            allowed = np.asarray(inside(prior, jnp.asarray(value)))
            given[name] = np.where(allowed, value, np.asarray(own[name])).reshape(y.shape[:-1])
    return given


@eqx.filter_jit
def _moments(pixel: InverseProblem, x, values):
    """Of the data of each pixel."""

    def of_one(values):
        there = pixel.at(values)
        law = there.noise(there.forward(x))
        return law.mean, law.variance

    return jax.vmap(jax.vmap(of_one))({n: jnp.asarray(v) for n, v in values.items()})


class _Chosen(NamedTuple):
    """The most likely fit of each pixel, its number of lines (-1 without a fit), how sure it is."""

    fit: MapFit
    number: np.ndarray
    probability: np.ndarray


def _chosen(pixel: InverseProblem, fits: Mapping[int, MapFit]) -> _Chosen:
    """Of lines that are not there values are NaN and variances 0."""
    ordered = list(fits.values())
    index, probability = most_likely(ordered, [math.factorial(k) for k in fits])
    number = np.where(index >= 0, np.array(list(fits))[index], -1)
    largest = ordered[-1]
    names, shape = list(largest.values), largest.status.shape

    def of_each(get: Callable[[MapFit], np.ndarray | None]) -> np.ndarray:
        out = np.array(get(largest))
        for i, fit in enumerate(ordered):
            out[index == i] = np.asarray(get(fit))[index == i]
        return out

    def named(what: str, nothing) -> dict[str, np.ndarray]:
        without = np.full(shape, nothing)
        return {n: of_each(lambda f, n=n: getattr(f, what).get(n, without)) for n in names}

    def covariance(fit: MapFit) -> np.ndarray:
        places = [names.index(n) for n in fit.values]
        out = np.zeros((*shape, len(names), len(names)), fit.covariance.dtype)
        out[..., np.array(places)[:, None], places] = fit.covariance
        return out

    fit = MapFit(
        named("values", np.nan),
        named("sd", np.nan),
        of_each(lambda f: f.status),
        of_each(lambda f: f.loss),
        of_each(lambda f: f.chi_squared),
        of_each(lambda f: f.points),
        named("bound", False),
        named("identified", True),
        of_each(lambda f: f.steps),
        of_each(lambda f: f.correlated),
        of_each(lambda f: f.excess),
        of_each(covariance),
    )
    return _Chosen(fit, number, probability)


def _in_places(pixel: InverseProblem, fit: MapFit) -> MapFit:
    """The same with lines of the same name where lines of other pixels are: those of the commonest
    number by their order, those of other numbers by which of these places they are nearest to, and
    what is beyond by their order."""
    lines = pixel.forward.names()
    centres = np.stack([fit.values[f"forward.{n}.centre"] for n in lines], axis=-1)
    order = _places(centres.reshape(-1, len(lines))).reshape(centres.shape)
    names = list(fit.values)
    index = np.broadcast_to(np.arange(len(names)), (*fit.status.shape, len(names))).copy()
    for i, name in enumerate(names):
        _, line, *rest = name.split(".")
        if line in lines:
            others = np.array([names.index(".".join(("forward", n, *rest))) for n in lines])
            index[..., i] = others[order[..., lines.index(line)]]

    def moved(of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        every = np.take_along_axis(np.stack([of[n] for n in names], axis=-1), index, axis=-1)
        return {n: every[..., i] for i, n in enumerate(names)}

    rows = np.take_along_axis(fit.covariance, index[..., None], axis=-2)
    named = {n: moved(getattr(fit, n)) for n in ("values", "sd", "bound", "identified")}
    covariance = np.take_along_axis(rows, index[..., None, :], axis=-1)
    return dataclasses.replace(fit, **named, covariance=covariance)


def _places(centres: Float[np.ndarray, "pixels k"]) -> np.ndarray:
    """Which line of a pixel stands at each place; NaN are lines that are not there."""
    ordered = np.argsort(centres, axis=-1)  # NaN last
    there = np.isfinite(centres).sum(axis=-1)
    if not there.any():
        return ordered
    commonest = int(np.bincount(there[there > 0]).argmax())
    along = np.sort(centres[there == commonest], axis=-1)[:, :commonest]
    typical = np.median(along, axis=0)
    out = ordered.copy()
    for i in np.flatnonzero((there > 0) & (there != commonest)):
        mine = centres[i, ordered[i, : there[i]]]
        lines, places = linear_sum_assignment(np.abs(mine[:, None] - typical))
        out[i] = -1
        out[i, places] = ordered[i, lines]
        # behind them lines without a place, then what is not there
        out[i, out[i] < 0] = [line for line in ordered[i] if line not in ordered[i, lines]]
    return out


def _with_fits(problem: InverseProblem, arrays: Mapping[str, np.ndarray]) -> InverseProblem:
    """Where there is no fit, the values that were there; lines that are not there have no
    height."""
    values, status = {}, arrays.get("status")
    for name, old in problem.values().items():
        new = arrays.get(f"values {pixel_name(name)}")
        new = np.full(old.shape, np.nan) if new is None else new.reshape(old.shape)
        if name.endswith(".height") and status is not None:
            fitted = ~np.isin(status, [STATUS.index(s) for s in UNUSABLE]).reshape(old.shape)
            new = np.where(np.isnan(new) & fitted, NOTHING * np.asarray(old), new)
        values[name] = jnp.where(jnp.isfinite(new), new, old)
    return problem.at(values)
