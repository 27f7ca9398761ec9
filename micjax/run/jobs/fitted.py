"""A number read off a fit of each curve: what a learner can follow, with the error that it has."""

import logging
import math
from collections.abc import Callable
from types import ModuleType

import jax
import numpy as np
from jaxtyping import Float

from micjax.active.learner.signals import channel_of
from micjax.core.names import unknown_name
from micjax.inference.maps.each import EachPixel
from micjax.inference.maps.stage import map_fit
from micjax.inference.runner import solve
from micjax.instruments import Record
from micjax.io import Field, FieldAxis
from micjax.run.plans.explore import FittedSignal
from micjax.run.plans.settings import checked, settings_of
from micjax.run.registry import find

log = logging.getLogger("micjax")

Map = Float[np.ndarray, "*map"]


def of_records(
    signal: FittedSignal, channel: str | None
) -> Callable[[Record], tuple[float, float]]:
    """The number and its error, of the curve of a record; NaN where the fit has not converged.

    **Raises:** `ValueError` for a problem that fits no curves, or options that it has not; the
    function too, for another name of a number, or curves that the problem does not take.
    """
    module, load = _module(signal)

    def number(record: Record) -> tuple[float, float]:
        name = channel_of(record, channel)
        values = np.asarray(record.data[name])
        if values.ndim == 0:
            if np.isnan(values):  # of a measurement that failed
                return math.nan, math.nan
            raise ValueError(f"{name} is a number; {signal.fit} fits curves")
        (along,) = record.dims[name]
        where, unit = record.coords.get(along, (np.arange(values.size), ""))
        axes = (FieldAxis(along, np.asarray(where, float), unit),)
        value, sd = _fitted(signal, module, load, Field(values, axes, record.units[name], name))
        if not math.isfinite(value.item()):
            log.warning("the fit of a curve by %s has not converged: no datum", signal.fit)
        return value.item(), sd.item()

    return number


def of_map(signal: FittedSignal, field: Field) -> tuple[Map, Map]:
    """The same of all curves of a file."""
    value, sd = _fitted(signal, *_module(signal), field)
    shape = field.data.shape[: value.ndim]
    return value.reshape(shape), sd.reshape(shape)


def _module(signal: FittedSignal) -> tuple[ModuleType, Callable]:
    entry = find(signal.fit)
    load = entry.function("load")
    if load is None:
        raise ValueError(f"the problem {signal.fit} has no `load`: it fits no curves of others")
    checked(f"option of {entry.name}", signal.options, settings_of(load), entry.ours)
    return entry.module, load


def _fitted(signal: FittedSignal, module: ModuleType, load: Callable, field: Field):
    options, x, y = load(field, **signal.options)
    problem = module.problem(**options)
    if not isinstance(problem.forward, EachPixel):
        raise ValueError(f"the problem {signal.fit} fits no curves, one at each pixel of a map")
    # the fits begin at what the curves show: no number is drawn
    solution = solve(module, problem, x, y, key=jax.random.key(0))
    if signal.name not in solution.results:
        raise ValueError(unknown_name(f"number of {signal.fit}", signal.name, solution.results))
    result, fit = solution.results[signal.name], map_fit(solution)
    errors = np.asarray(result.metadata.get("errors", np.full(result.data.shape, np.nan)))
    known = fit.usable() & np.isfinite(result.data) & np.isfinite(errors) & (errors > 0.0)
    value, sd = (np.where(known, a, np.nan) for a in (result.data, errors))
    return value, sd
