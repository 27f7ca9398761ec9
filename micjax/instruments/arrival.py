"""Whether an instrument is where it was sent."""

from collections.abc import Mapping

from micjax.instruments.base import Axis, MoveError


def check_arrived(
    axes: Mapping[str, Axis], target: Mapping[str, float], found: Mapping[str, float]
) -> None:
    """Compares readbacks with a target that was checked before.

    **Raises:** `MoveError` for an axis beyond its `tol`; a readback that is not finite is nowhere.
    """
    for name, value in target.items():
        axis = axes[name]
        if not abs(found[name] - value) <= axis.tol:
            raise MoveError(
                f"{name} is at {found[name]:g} {axis.unit}, asked for {value:g}; "
                f"{axis.tol:g} {axis.unit} are tolerated"
            )


def check_tolerances(axes: Mapping[str, Axis]) -> None:
    """Of an axis without `tol` it could not be told whether it arrives.

    **Raises:** `ValueError` for one.
    """
    for name, axis in axes.items():
        if axis.tol == float("inf"):
            raise ValueError(f"axis {name} has no tol: whether it arrives could not be told")
