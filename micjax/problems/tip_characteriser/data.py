"""Scans and known surfaces from files, for `micjax.problems.tip_characteriser`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.io import check_image, read
from micjax.problems.shared.heights import heights_nm


def known_surface(file: str, shape: tuple[int, int], pixel: np.ndarray) -> np.ndarray:
    """Heights (nm) of the file, above their lowest."""
    field = check_image(read(file, None, [float(p) for p in pixel]))
    if field.data.shape != shape:
        raise ValueError(
            f"{file}: {field.data.shape} pixels, the scan has {shape}; the characteriser must be "
            "given on the pixels of the scan"
        )
    heights = heights_nm(field)
    return heights - heights.min()


def load(
    file,
    characteriser: str,
    channel: str | None = None,
    pixel_nm: float | list | None = None,
    registration_nm: float = 1.0,
    height_unit: str | None = None,
) -> tuple[dict[str, Any], Int[Array, " n"], Float[Array, "n ny nx"]]:
    """A levelled scan of a known surface, and that surface on the same pixels.

    **Arguments:**

    - `characteriser`: a file with the heights of the known surface.
    - `channel`: which image of the scan's file; the height if not given.
    - `pixel_nm`: pixel size where the scan's file does not state one.
    - `registration_nm`: how well the two are laid upon each other, rms.
    - `height_unit`: of the scan's values where its file states none; nm if they can be that.

    **Raises:** `ValueError` for NaN or constant images, besides what `micjax.io.read` raises.
    """
    field = check_image(read(file, channel, pixel_nm))
    heights, pixel = heights_nm(field, height_unit), np.asarray(field.pixel_nm, float)
    surface = known_surface(characteriser, heights.shape, pixel)
    # the zero of a scan means nothing; the ground is where the tip loses least
    heights = heights - np.median(heights) + np.median(surface)
    options = {
        "ny": heights.shape[0],
        "nx": heights.shape[1],
        "pixel_nm": [float(p) for p in pixel],
        "characteriser": str(characteriser),
        "registration_nm": registration_nm,
    }
    return options, jnp.arange(1), jnp.asarray(heights, dtype=float)[None]
