"""Data, prediction and residual of any problem as fields with named axes."""

import inspect
import re
from typing import Any

import numpy as np

from micjax.core.problem import InverseProblem
from micjax.io.fields import Axis, Field

# units stand in the names of arguments: x_nm, energy_keV, angle_mrad
_WITH_UNIT = re.compile(r"^(\w+?)_(pm|nm|um|A|mrad|deg|eV|keV|V|mV|nN|pN|Hz|kHz|s|ms)$")


def comparison(problem: InverseProblem, x, y) -> tuple[dict[str, Any], dict[str, float]]:
    """Fields `data`, `prediction`, `residual` and the metric `rms_residual`.

    Both are empty when the prediction is not one array of the shape of the data.
    """
    measured, predicted = np.asarray(y), problem.forward(x)
    if not hasattr(predicted, "shape") or measured.shape != predicted.shape:
        return {}, {}
    predicted = np.asarray(predicted)
    residual = measured - predicted
    axes = _axes(problem, x, measured.shape)
    arrays = {"data": measured, "prediction": predicted, "residual": residual}
    rms = float(np.sqrt(np.mean(np.abs(residual) ** 2)))
    return {n: Field(a, axes, "", n) for n, a in arrays.items()}, {"rms_residual": rms}


def _axes(problem: InverseProblem, x, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    if len(shape) == 1 and np.shape(x) == shape:
        name, unit = argument(problem)
        return (
            Axis("x" if name in ("data", "data_errors", "title") else name, np.asarray(x), unit),
        )
    names = ["y", "x"] if len(shape) == 2 else [f"axis{i}" for i in range(len(shape))]
    return tuple(Axis(n, np.arange(size), "px") for n, size in zip(names, shape, strict=True))


def argument(problem: InverseProblem) -> tuple[str, str]:
    """Name and unit of what `forward` takes: `("x", "nm")` of `forward(x_nm)`."""
    try:
        name = next(iter(inspect.signature(problem.forward).parameters))
    except (TypeError, ValueError, StopIteration):
        return "x", ""
    found = _WITH_UNIT.match(name)
    return (found[1], found[2]) if found else (name, "")
