"""The rings of an image's power spectrum: how large its unit cells are, and where its noise begins.

What windows, frequencies and smoothing are chosen by, where the user says nothing.
"""

from typing import NamedTuple

import numpy as np
import scipy.signal
from jaxtyping import Float

from micjax.physics.patches.local_spectra import LocalSpectra, over_strips, power_of
from micjax.physics.patches.windows import Hann

SIZE_PX = 512  # of the patches, at most
SLOWEST = 4  # of the frequencies that they resolve: below is thickness, whatever the crystal
CELLS = 2.4  # edge of a cell over the mean period of those that stand out


class Rings(NamedTuple):
    """The mean power at each distance from the middle of the plane of frequencies."""

    radius_perA: Float[np.ndarray, "r"]
    power: Float[np.ndarray, "r"]  # in squared units of the image


class Band(NamedTuple):
    """What of an image's frequencies belongs to its crystals."""

    cell_A: float  # about the edge of a unit cell
    k_max_perA: float  # above are few reflections, and enough noise to be measured


def rings(
    image: Float[np.ndarray, "h w"], measured: Float[np.ndarray, "h w"] | None, pixel_A: float
) -> Rings:
    """Over all of an image to its last pixel, from patches of up to `SIZE_PX` pixels."""
    size = min(SIZE_PX, *image.shape)
    local = LocalSpectra(Hann(), size, size, pixel_A, 0.5 / pixel_A, 1)
    rows, columns = (_starts(n, size) for n in image.shape)
    power: np.ndarray | float = 0.0
    for y in rows:
        for x in columns:
            of = slice(y, y + size), slice(x, x + size)
            known = None if measured is None else measured[of]
            spectra = over_strips(local, image[of], known, power_of, rows=1)
            power = power + spectra[0, 0].astype(np.float64) / (len(rows) * len(columns))
    ky, kx = local.frequencies_perA
    ring = np.round(np.hypot(ky[:, None], kx) / local.spacing_perA).astype(int).ravel()
    total = np.bincount(ring, np.ravel(power))
    return Rings(kx, (total / np.bincount(ring))[: len(kx)])


def _starts(n: int, size: int) -> list[int]:
    """Of patches that overlap by half or more, from the first to the last pixel."""
    return (
        np.linspace(0, n - size, 1 - (size - n) // max(size // 2, 1)).round().astype(int).tolist()
    )


def band(
    image: Float[np.ndarray, "h w"], measured: Float[np.ndarray, "h w"] | None, pixel_A: float
) -> Band:
    """From the rings that stand out: twice as strong as what is around them.

    The edge of a cell is taken from their mean radius, each by its power.

    **Raises:** `ValueError` where none stands out.
    """
    radius, power = rings(image, measured, pixel_A)
    outer = float(np.median(power[-max(1, len(power) // 10) :]))
    logarithm = np.log(np.maximum(power, 1e-12 * power.max()))
    peaks, _ = scipy.signal.find_peaks(logarithm, prominence=np.log(2.0))
    peaks = peaks[(peaks >= SLOWEST) & (power[peaks] > 3.0 * outer)]
    if not len(peaks):
        raise ValueError(
            "no ring of reflections stands out of the power spectrum: is this an image of crystals "
            "at atomic resolution, and the pixel size right?"
        )
    strength = radius[peaks] * power[peaks]
    mean = np.sum(strength * radius[peaks]) / np.sum(strength)
    strongest = radius[peaks[np.argmax(strength)]]
    last = radius[np.flatnonzero(power > 2.0 * outer)[-1]]
    # an image that was filtered has no white noise, and its power goes on falling
    k_max = min(max(1.3 * radius[peaks[-1]], min(1.15 * last, 3.0 * strongest)), radius[-1])
    return Band(float(CELLS / mean), float(k_max))
