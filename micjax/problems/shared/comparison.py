"""Data, prediction and residual of any problem as fields with named axes."""

import inspect
import re

import equinox as eqx
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.io.fields import Field, FieldAxis

# units stand in the names of arguments: x_nm, energy_keV, angle_mrad
_WITH_UNIT = re.compile(r"^(\w+?)_(pm|nm|um|A|mrad|deg|eV|keV|V|mV|nN|pN|Hz|kHz|s|ms)$")


def comparison(problem: InverseProblem, x, y) -> dict[str, Field]:
    """Fields `data`, `prediction`, `residual`; none when the prediction is not one array of the
    shape of the data."""
    measured, predicted = np.asarray(y), _predicted(problem.forward, x)
    if not hasattr(predicted, "shape") or measured.shape != predicted.shape:
        return {}
    axes = _axes(problem, x, measured.shape)
    arrays = {"data": measured, "prediction": np.asarray(predicted)}
    arrays["residual"] = measured - arrays["prediction"]
    return {n: Field(a, axes, "", n) for n, a in arrays.items()}


@eqx.filter_jit
def _predicted(forward, x):
    return forward(x)


def _axes(problem: InverseProblem, x, shape: tuple[int, ...]) -> tuple[FieldAxis, ...]:
    names = ["y", "x"] if len(shape) == 2 else [f"axis{i}" for i in range(len(shape))]
    axes = [FieldAxis(n, np.arange(size), "px") for n, size in zip(names, shape, strict=True)]
    if len(shape) <= 2 and np.shape(x) == shape[:1]:
        name, unit = argument(problem)
        taken = ("data", "data_errors", "title")
        axes[0] = FieldAxis("x" if name in taken else name, np.asarray(x), unit)
        axes[1:] = [FieldAxis("channel", a.values, "") for a in axes[1:]]
    return tuple(axes)


def argument(problem: InverseProblem) -> tuple[str, str]:
    """Name and unit of what `forward` takes: `("x", "nm")` of `forward(x_nm)`."""
    try:
        name = next(iter(inspect.signature(problem.forward).parameters))
    except (TypeError, ValueError, StopIteration):
        return "x", ""
    match = _WITH_UNIT.match(name)
    return (match[1], match[2]) if match else (name, "")
