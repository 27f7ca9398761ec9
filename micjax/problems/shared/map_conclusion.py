"""What is told of a map of fits: maps with errors, how many pixels ended how, what is doubtful."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from micjax.core.problem import InverseProblem
from micjax.core.ranges import unit_of
from micjax.inference.maps.each import EachPixel, one_pixel, pixel_name
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.stage import fitted_together, map_fit
from micjax.inference.maps.status import STATUS
from micjax.inference.solution import Solution
from micjax.io import Field, FieldAxis
from micjax.io.fields import PIXELS
from micjax.physics.noise import Poisson

CORRELATED = 4.0  # standard deviations of the correlation of neighbours in white noise
BIAS = 0.5  # standard deviations, below which nobody is misled
SURPRISING = 5.0  # standard deviations of chi^2

Derived = Callable[[Any], dict[str, jax.Array]]  # of the forward model of a pixel


class Quantity(NamedTuple):
    """A number that every pixel has, with its error."""

    value: Float[np.ndarray, "ny nx"]
    sd: Float[np.ndarray, "ny nx"]
    unit: str


def quantities(
    problem: InverseProblem,
    fit: MapFit,
    units: Mapping[str, str] | None = None,
    derived: Derived | None = None,
) -> dict[str, Quantity]:
    """Of all unknowns that are one number, and of what is `derived` from the model of a pixel.

    **Arguments:**

    - `units`: of names which do not end in theirs.
    """
    value, sd = dict(fit.values), dict(fit.sd)
    if derived is not None:
        pixel, _ = one_pixel(problem)
        more, more_sd = fit.derived(lambda values: derived(pixel.at(values).forward))
        value, sd = more | value, more_sd | sd
    short = {n.removeprefix("forward."): n for n in value}
    rank = fit.status.ndim
    return {
        s: Quantity(value[n], sd[n], (units or {}).get(s.rpartition(".")[2]) or unit_of(s))
        for s, n in short.items()
        if value[n].ndim == rank
    }


def conclude_map(
    solution: Solution,
    *,
    units: Mapping[str, str] | None = None,
    derived: Derived | None = None,
    more: Callable[[Mapping[str, Quantity]], Mapping[str, Quantity]] | None = None,
    first: str = "",
) -> Solution:
    """With the maps of all `quantities`, a table of them, and sentences on how the fits ended.

    **Arguments:**

    - `units`, `derived`: as of `quantities`.
    - `more`: what follows from these by what is known of each pixel.
    - `first`: the quantity that viewers open.
    """
    fit = map_fit(solution)
    if fit is None:
        return solution
    forward: EachPixel = solution.problem.forward
    every = {
        name: q
        for name, q in quantities(solution.problem, fit, units, derived).items()
        if np.isfinite(q.value).any() or not fit.usable().any()  # a line that no pixel has
    }
    every |= more(every) if more is not None else {}
    axes = map_axes(forward)
    fields = {
        name: Field(q.value, axes, q.unit, name, {"errors": q.sd}) for name, q in every.items()
    }
    if first in fields:
        fields = {first: fields[first]} | fields
    counted = isinstance(one_pixel(solution.problem)[0].noise, Poisson)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_datum = np.where(fit.usable(), fit.chi_squared / np.maximum(fit.points, 1), np.nan)
    meaning = {"meaning": ", ".join(f"{i} {s}" for i, s in enumerate(STATUS))}
    fields["chi_squared_per_datum"] = Field(per_datum, axes, "", "chi_squared_per_datum")
    fields["status"] = Field(fit.status, axes, "", "status", meaning)
    converged = fit.status == STATUS.index("converged")
    return dataclasses.replace(
        solution,
        results=fields,
        metrics=dict(solution.metrics) | {"converged_share": float(np.mean(converged))},
        table=[_row(name, q, fit) for name, q in every.items()],
        statements=[
            *_how_they_ended(fit),
            *_together(fitted_together(solution)),
            *_doubtful(fit, counted),
            *solution.statements,
        ],
        extra={"fit": fit, "quantities": every},
    )


def map_axes(forward: EachPixel) -> tuple[FieldAxis, ...]:
    """Of the results of a map."""
    edges, unit = forward.pixel_nm, "nm"
    if edges is None:
        edges, unit = (1.0,) * len(forward.shape), PIXELS
    return tuple(
        FieldAxis(n, edge * np.arange(k), unit)
        for n, k, edge in zip("yx", forward.shape, edges, strict=True)
    )


def _row(name: str, q: Quantity, fit: MapFit) -> dict[str, Any]:
    usable = fit.usable() & np.isfinite(q.value)
    full = f"forward.{name}" if f"forward.{name}" in fit.bound else name
    row: dict[str, Any] = {"quantity": f"{name} ({q.unit})" if q.unit else name}
    low, middle, high = np.quantile(q.value[usable], [0.05, 0.5, 0.95]) if usable.any() else [0] * 3
    row |= {"median": float(middle), "5 % to 95 % of pixels": f"{low:.4g} to {high:.4g}"}
    known = usable & np.isfinite(q.sd)
    row["error of a pixel"] = float(np.median(q.sd[known])) if known.any() else None
    if full in fit.bound:
        some = max(int(usable.sum()), 1)
        row["identified (%)"] = 100.0 * float(np.sum(fit.identified[full] & usable)) / some
        row["at a bound (%)"] = 100.0 * float(np.sum(fit.bound[full] & usable)) / some
    return row


def _how_they_ended(fit: MapFit) -> Iterator[str]:
    counts, total = fit.counts(), fit.status.size
    all_well = counts["converged"]
    ended = sum(counts[s] for s in ("converged", "at a bound", "not identified"))
    yield f"{ended:,} of {total:,} fits converged, " + (
        "all of their unknowns identified."
        if ended == all_well > 0
        else f"{all_well:,} of them with all unknowns identified and within their priors; in the "
        "others some are not (below), which says nothing against the rest."
    )
    why = {"at a bound": fit.bound, "not identified": {n: ~a for n, a in fit.identified.items()}}
    for status, count in counts.items():
        if status == "converged" or not count:
            continue
        there = fit.status == STATUS.index(status)
        names = {n: int(np.sum(flags & there)) for n, flags in why.get(status, {}).items()}
        most = sorted(((k, n) for n, k in names.items() if k), reverse=True)[:3]
        of = ", ".join(f"{n.removeprefix('forward.')} in {k:,}" for k, n in most)
        upper = status.upper() if status == "not identified" else status.capitalize()
        yield f"{upper}: {count:,} pixel{'s' * (count > 1)}{f' ({of})' if of else ''}."


def _together(names: Mapping[str, str]) -> Iterator[str]:
    if smooth := [n for n, how in names.items() if how == "smooth"]:
        yield (
            f"Neighbouring pixels were taken to be alike in {', '.join(smooth)}, as far as the "
            "data show it and but for edges; errors hold for that."
        )
    for name, how in names.items():
        if how != "smooth":
            where = "the map" if how == "map" else f"each {how}"
            yield f"{name} is the same all over {where}."


def _doubtful(fit: MapFit, counted: bool) -> Iterator[str]:
    usable = fit.usable()
    total = int(usable.sum())
    many = int(np.sum(usable & (fit.excess > SURPRISING))) if counted else 0
    if many:
        yield (
            f"The model does not explain {many:,} of {total:,} pixels: chi^2 is more than "
            f"{SURPRISING:.0f} standard deviations too high, and their errors "
            f"{'have been made larger for it' if fit.grown is not None else 'are too small'}."
        )
    there = usable & (fit.correlated > CORRELATED)
    alike = int(np.sum(there))
    if alike:
        # were it noise, the errors would be larger by this (Birge 1932, Phys. Rev. 40, 207)
        birge = float(np.median(np.sqrt(fit.chi_squared[there] / np.maximum(fit.points[there], 1))))
        factor = f", by about {birge:.2g} times" if birge > 1.2 else ""
        does = f"the errors are too small{factor}" if fit.grown is None else _larger(fit)
        yield (
            f"What is left of {alike:,} of {total:,} pixels is no noise: neighbours are alike by "
            f"more than {CORRELATED:.0f} standard deviations. There the noise is correlated, or "
            f"the model leaves something out: {does}."
        )
    elif fit.grown is not None:
        yield f"What is left of all pixels together is not the noise of the model: {_larger(fit)}."
    if total and fit.grown is None and not alike and (bias := _common_bias(fit)):
        yield (
            "What is left of all pixels together is no noise, though no single one shows it: the "
            f"model leaves something out that they have in common, by which values may be off by "
            f"up to {bias:.2g} of their errors, and a number of peaks be wrong."
        )


def _larger(fit: MapFit) -> str:
    grown = fit.grown[fit.usable()]
    return (
        f"errors have been made larger for it, by {np.median(grown):.2g} in most and up to "
        f"{np.max(grown):.2g} in some pixels, and values may be off by more"
    )


def _common_bias(fit: MapFit) -> float | None:
    """By how many of their standard deviations values may be off, where the residuals of all pixels
    have something in common; None where they have not.

    m standard deviations of noise at each of n data leave a correlation of neighbours of m^2
    sqrt(n), and shift a value that looks like them by m sqrt(n) of its standard deviations.
    """
    there = fit.usable()
    common = float(np.mean(fit.correlated[there]))
    bias = np.sqrt(max(common, 0.0) * np.sqrt(np.median(fit.points[there])))
    sure = common * np.sqrt(there.sum()) > CORRELATED
    return float(bias) if sure and bias > BIAS else None


def compare_map(
    solution: Solution,
    truth: InverseProblem,
    starts: Mapping[str, np.ndarray] | None = None,
    derived: Derived | None = None,
) -> list[dict[str, Any]]:
    """For each quantity the error of one value for all pixels, of the `starts` (by names of a
    pixel), of the fits; and how many 90 % intervals hold the truth."""
    fit: MapFit | None = solution.extra.get("fit")
    if fit is None:
        return []
    true = {pixel_name(n): np.asarray(v) for n, v in truth.values().items()}
    starts = dict(starts or {})
    if derived is not None:
        pixel, _ = one_pixel(truth)
        of_all = jax.vmap(jax.vmap(lambda values: derived(pixel.at(values).forward)))
        true = jax.device_get(eqx.filter_jit(of_all)(true)) | true
    rows = []
    for name, q in solution.extra["quantities"].items():
        full = name if name in true else f"forward.{name}"
        if full not in true:
            continue
        usable = fit.usable() & np.isfinite(q.value)
        off = (q.value - true[full])[usable]
        row: dict[str, Any] = {
            "quantity": f"{name} ({q.unit})" if q.unit else name,
            "error of the median": _rms((np.median(true[full]) - true[full])[usable]),
        }
        row["error of the start"] = (
            _rms((np.broadcast_to(starts[full], usable.shape) - true[full])[usable])
            if full in starts
            else None
        )
        row["error of the fit"] = _rms(off)
        row["90 % intervals hold (%)"] = 100.0 * float(np.mean(np.abs(off) < 1.645 * q.sd[usable]))
        rows.append(row)
    return rows


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else np.nan
