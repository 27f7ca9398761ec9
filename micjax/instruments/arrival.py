"""Whether an instrument is where it was sent."""

import math
from collections.abc import Iterable, Mapping

from micjax.instruments.base import Axis, LimitError, MoveError


def check_arrived(
    axes: Mapping[str, Axis], target: Mapping[str, float], readings: Mapping[str, float]
) -> None:
    """Compares readbacks with a target that was checked before.

    **Raises:** `MoveError` for an axis beyond its tolerance; a readback that is not finite is
    nowhere.
    """
    for name, value in target.items():
        axis = axes[name]
        if not abs(readings[name] - value) <= axis.tolerance:
            unstated = (
                "" if math.isfinite(axis.tol) else ", a part of its range since it has no tol"
            )
            raise MoveError(
                f"{name} is at {readings[name]:g} {axis.unit}, asked for {value:g}; "
                f"{axis.tolerance:g} {axis.unit} are tolerated{unstated}"
            )


def check_standing(
    axes: Mapping[str, Axis], readings: Mapping[str, float], but: Iterable[str] = ()
) -> None:
    """Compares readbacks with the limits of all axes `but` some.

    **Raises:** `LimitError` for an axis beyond them by more than its tolerance.
    """
    for name in set(axes) - set(but):
        axis, value = axes[name], readings[name]
        if not axis.lo - axis.tolerance <= value <= axis.hi + axis.tolerance:
            raise LimitError(
                f"{name} is at {value:g} {axis.unit}, outside {axis.lo:g} to {axis.hi:g} "
                f"{axis.unit}: nothing is measured before it is moved there"
            )


def check_tolerances(axes: Mapping[str, Axis]) -> None:
    """Of an axis without `tol` it could not be told whether it arrives.

    **Raises:** `ValueError` for one.
    """
    for name, axis in axes.items():
        if axis.tol == float("inf"):
            raise ValueError(f"axis {name} has no tol: whether it arrives could not be told")
