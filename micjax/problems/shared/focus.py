"""The focus of each image of a series, from a file."""

import numpy as np
from jaxtyping import Float

from micjax.io import Field
from micjax.io.fields import nm_per

SIGNS = {"c10": 1.0, "defocus": -1.0}


def C10_changes_A(field: Field, instead: str) -> Float[np.ndarray, "images"]:
    """What was added to C10, from a first axis called C10 or defocus; `instead` can be given.

    **Raises:** `ValueError` for another first axis, or one that is no length.
    """
    focus = field.axes[0]
    sign, scale = SIGNS.get(focus.name.lower()), nm_per(focus.unit)
    if sign is None or scale is None:
        raise ValueError(
            f"{field.name}: axis {focus.name!r} in {focus.unit or 'no unit'!r} is no length called "
            f"C10 or defocus: set {instead}"
        )
    return sign * 10.0 * scale * np.asarray(focus.values, float)
