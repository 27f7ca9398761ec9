"""Heights of a file that may not say in which unit they are."""

import logging
import re
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from micjax.core.ranges import check_ranges
from micjax.io import Field
from micjax.io.fields import LENGTHS, nm_per
from micjax.io.registry import speaks_of_height

log = logging.getLogger("micjax")

LEAST_RANGE_NM = 1e-3  # no probe microscope sees less: such numbers are metres
_OSCILLATION = re.compile("amplitude|piezoresponse", re.IGNORECASE)


def heights_nm(field: Field, height_unit: str | None = None) -> Float[np.ndarray, "ny nx"]:
    """The heights of an image in nm.

    **Arguments:**

    - `field`: the image.
    - `height_unit`: of its values where the file states none; by default nm, if that can be.

    **Raises:** `ValueError` for amplitudes, values in another unit, and values without a unit that
    can hardly be heights in nm: integers, or a range below 1 pm.
    """
    if _OSCILLATION.search(field.name):
        raise ValueError(f"{field.name}: the amplitude of an oscillation is no height")
    if height_unit is not None and nm_per(height_unit) is None:
        raise ValueError(f"height_unit = {height_unit!r} is not a length, as {', '.join(LENGTHS)}")
    heights = _in_nm(field, height_unit)
    check_ranges(f"{field.name}: the heights in nm", heights[np.isfinite(heights)])
    return heights


def _in_nm(field: Field, height_unit: str | None) -> Float[np.ndarray, "ny nx"]:
    if field.unit:
        if height_unit is not None and nm_per(height_unit) != nm_per(field.unit):
            raise ValueError(f"{field.name} is in {field.unit}, height_unit says {height_unit}")
        if not speaks_of_height(field.name):
            log.warning("%s (%s) is taken as a height", field.name, field.unit)
        return field.to_nm()
    heights = replace(field, unit=height_unit or "nm").to_nm()
    if height_unit is None:
        _refuse_others(field, heights)
        log.warning(
            "%s: no unit in the file, %.4g to %.4g are taken as nm (--set height_unit=...)",
            field.name,
            heights.min(),
            heights.max(),
        )
    return heights


def _refuse_others(field: Field, values: np.ndarray) -> None:
    low, high, stored = values.min(), values.max(), field.metadata.get("stored", values.dtype)
    contents = f"{field.name}: no unit in the file, and values from {low:.4g} to {high:.4g}"
    if stored.kind in "iu":
        raise ValueError(
            f"{contents} ({stored}) are grey levels or counts: set height_unit if they are heights"
        )
    if np.ptp(values) < LEAST_RANGE_NM:
        raise ValueError(
            f"{contents} would be less than 1 pm in nm: set height_unit=m if in metres"
        )
