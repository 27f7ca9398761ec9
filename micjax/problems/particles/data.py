"""An image of particles or grains from a file, for `micjax.problems.particles`."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Array, Float, Int

from micjax.io import read
from micjax.io.fields import known_pixel_nm
from micjax.problems.particles.network import FEWEST_PX

log = logging.getLogger("micjax")

LAPLACE = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])


def load(
    file,
    channel: str | None = None,
    pixel_nm: float | Sequence[float] | None = None,
    polarity: Literal["auto", "bright", "dark", "both"] = "auto",
    net: str | None = None,
    labels: str | None = None,
) -> tuple[dict[str, Any], Int[Array, "1"], Float[Array, "y x"]]:
    """An image [y, x].

    **Arguments:**

    - `channel`: which array of the file.
    - `pixel_nm`: edge of a pixel, one number or (dy, dx), where the file does not say it, or says
        it wrongly.
    - `polarity`, `net`, `labels`: see `micjax.problems.particles.problem`.

    **Raises:** `ValueError` for other shapes, images smaller than 33 pixels (3 for `labels`),
        values that are not finite, a constant image.
    """
    field = read(file, channel, pixel_nm)
    values = field.data
    if values.dtype.kind != "f" or values.ndim != 2:
        named = " x ".join(map(str, values.shape))
        raise ValueError(
            f"{field.name}: {values.dtype} of {named}: an image with one real value a pixel is "
            "needed"
        )
    who, least = ("the network", FEWEST_PX) if labels is None else ("the noise", len(LAPLACE))
    if min(values.shape) < least:
        raise ValueError(
            f"{field.name}: {values.shape[0]} x {values.shape[1]} pixels; {who} needs at least "
            f"{least} x {least}"
        )
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).sum())
        raise ValueError(
            f"{field.name}: {lost} of {values.size} values are not finite: crop or fill them first"
        )
    if np.ptp(values) == 0.0:
        raise ValueError(f"{field.name}: all values are {values.flat[0]:.6g}")
    options: dict[str, Any] = {
        "ny": values.shape[0],
        "nx": values.shape[1],
        "sigma": max(noise_sd(values), 1e-6 * float(values.std())),
        "mean": float(values.mean()),
        "polarity": polarity,
        "pixel_nm": known_pixel_nm(field),
        "net": None if net is None else str(pathlib.Path(net).absolute()),
        "labels": labels,
    }
    log.info("%d x %d pixels, noise %.3g", *values.shape, options["sigma"])
    return options, jnp.zeros(1, int), jnp.asarray(values, float)


def noise_sd(image: Float[np.ndarray, "y x"]) -> float:
    """Standard deviation of white noise, from what a Laplacian leaves (Immerkær 1996)."""
    left = scipy.ndimage.convolve(image, LAPLACE)[1:-1, 1:-1]
    return float(np.sqrt(np.pi / 2.0) * np.mean(np.abs(left)) / 6.0)
