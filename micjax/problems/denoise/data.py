"""An image or a stack of frames from a file, for `micjax.problems.denoise`."""

import logging
import pathlib
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import scipy.signal
from jaxtyping import Array, Float, Int

from micjax.io import Field, read
from micjax.io.fields import known_pixel_nm
from micjax.problems.denoise.drift import sd_between

log = logging.getLogger("micjax")

LEAST_PX = 32
LAPLACE = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])


def load(
    file,
    channel: str | None = None,
    noise: Literal["auto", "poisson", "normal"] = "auto",
    sigma: float | None = None,
    net: str | None = None,
) -> tuple[dict[str, Any], Int[Array, "n"], Float[Array, "n y x"]]:
    """An image [y, x], or a stack of frames of the same sample [frame, y, x].

    **Arguments:**

    - `channel`: which array of the file.
    - `noise`: `poisson` for counts, `normal` for other values; `auto`: counts if all values are
        whole numbers that are not below zero and their noise is as large as that of counts.
    - `sigma`: standard deviation of normal noise, where it is known (`auto` is then `normal`); else
        from what frames differ by, of a single one from differences of neighbouring pixels
        (Immerkær 1996).
    - `net`: a file of weights that the network begins with.

    **Raises:** `ValueError` for other shapes, images smaller than 32 pixels, values that are not
    finite, constant images, counts that are none, images without noise.
    """
    field = read(file, channel)
    values = _frames(field)
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).sum())
        raise ValueError(
            f"{field.name}: {lost} of {values.size} values are not finite: crop or fill them first"
        )
    if min(values.shape[1:]) < LEAST_PX:
        raise ValueError(
            f"{field.name}: frames of {values.shape[1]} x {values.shape[2]} pixels; at least "
            f"{LEAST_PX} x {LEAST_PX} are needed"
        )
    flat = [i for i, frame in enumerate(values) if np.ptp(frame) == 0.0]
    if flat:
        raise ValueError(f"{field.name}: frame {flat[0]} is constant")
    deviation = float(np.sqrt(np.mean([noise_sd(frame) ** 2 for frame in values])))
    countable = bool((values >= 0).all() and (values == np.round(values)).all())
    if noise == "poisson" and not countable:
        raise ValueError(
            f"{field.name}: values from {values.min():.6g} to {values.max():.6g}, which are no "
            "counts: whole numbers not below zero are needed for noise = poisson"
        )
    like_counts = countable and 0.5 < deviation**2 / values.mean() < 2.0
    if sigma is not None and noise == "poisson":
        raise ValueError(f"sigma = {sigma:g} is of normal noise; noise = poisson has none")
    counts = like_counts and sigma is None
    law = noise if noise != "auto" else "poisson" if counts else "normal"
    if noise == "auto" and sigma is None and countable and not like_counts:
        log.info(
            "whole numbers, but their noise of %.3g is not that of counts, %.3g: noise = normal",
            deviation,
            np.sqrt(values.mean()),
        )
    if law == "normal" and sigma is None:
        sigma = deviation if len(values) == 1 else sd_between(values)
        if not sigma > 0.0:
            raise ValueError(f"{field.name}: no noise is seen in it; give its sigma, if it has any")
    pixel_nm = known_pixel_nm(field)
    options: dict[str, Any] = {
        "ny": values.shape[1],
        "nx": values.shape[2],
        "frames": len(values),
        "noise": law,
        "sigma": sigma if law == "normal" else 1.0,
        "level": float(np.mean(np.abs(values))),
        "pixel_A": None if pixel_nm is None else tuple(10.0 * edge for edge in pixel_nm),
        "net": None if net is None else str(pathlib.Path(net).absolute()),
    }
    log.info("%d frames of %d x %d pixels, noise: %s", *values.shape, law)
    return options, jnp.arange(len(values)), jnp.asarray(values, float)


def noise_sd(image: Float[np.ndarray, "y x"]) -> float:
    """Standard deviation of white noise, from what a Laplacian leaves (Immerkær 1996)."""
    left = scipy.signal.convolve2d(image, LAPLACE, mode="valid")
    return float(np.sqrt(np.pi / 2.0) * np.mean(np.abs(left)) / 6.0)


def _frames(field: Field) -> Float[np.ndarray, "n y x"]:
    if field.data.dtype.kind != "f" or field.data.ndim not in (2, 3):
        named = " x ".join(map(str, field.data.shape))
        raise ValueError(
            f"{field.name}: {field.data.dtype} of {named}: an image or a stack of frames "
            "with one real value a pixel is needed"
        )
    if not field.data.size:
        raise ValueError(f"{field.name}: there are no pixels, the shape is {field.data.shape}")
    return field.data.reshape(-1, *field.data.shape[-2:])
