"""Spectra of a file, for `micjax.problems.peaks`."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from micjax.io import read
from micjax.problems.peaks.setting import Axis, Background, Shape, Spectra
from micjax.problems.shared.spectrum_images import NoiseChoice, noise_options, spectrum_image


def load(
    file,
    channel: str | None = None,
    peaks: int | Sequence[int] = 1,
    shape: Shape = "gaussian",
    background: Background = "level",
    centres: Sequence[float] | None = None,
    within: float | None = None,
    noise: NoiseChoice = "auto",
    signal_min: float | None = None,
    signal_max: float | None = None,
) -> tuple[dict[str, Any], Axis, Spectra]:
    """Spectra `[y, x, channel]`, `[x, channel]` or one of them. Channels that are NaN do not count.

    **Arguments:**

    - `channel`: which array of the file.
    - `peaks`, `shape`, `background`, `centres`, `within`: as of `problem`.
    - `noise`: `poisson`, `normal`, or `auto`: counts if all values are whole numbers not below 0.
    - `signal_min`, `signal_max`: the part of the axis that is fitted.

    **Raises:** `ValueError` for other shapes, and counts that are none.
    """
    field = read(file, channel)
    image = spectrum_image(field, signal_min, signal_max)
    order = np.argsort(image.axis.values)
    axis, y = image.axis.values[order], image.y[..., order]
    options = image.options() | noise_options(field.name, y, noise)
    peaks = peaks if isinstance(peaks, int) else list(peaks)
    options |= {"peaks": peaks, "shape": shape, "background": background}
    options |= {"centres": None if centres is None else [float(c) for c in centres]}
    options |= {
        "within": within,
        "level": float(np.nanpercentile(np.abs(y), 99.9)) or 1.0,
        "signal_low": float(axis[0]),
        "signal_high": float(axis[-1]),
        "signal_step": float(np.median(np.diff(axis))),
        "signal_name": image.axis.name or "channel",
        "signal_unit": image.axis.unit,
    }
    return options, jnp.asarray(axis, float), jnp.asarray(y, float)
