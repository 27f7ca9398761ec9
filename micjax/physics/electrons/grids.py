"""How many pixels a wave needs."""

import numpy as np
import scipy.fft

from micjax.physics.electrons.multislice import CUTOFF
from micjax.physics.electrons.optics import wavelength_A

SLOW = 512  # rows of a multiple of 4096 bytes compete for the same lines of a cache


def quick_size(least: float, multiple_of: int = 1) -> int:
    """The next number of pixels whose FFT is quick: of factors 2, 3 and 5, no multiple of 512."""
    n = max(1, int(np.ceil(least / multiple_of * (1.0 - 1e-6))))
    while (n := scipy.fft.next_fast_len(n, real=True)) * multiple_of % SLOW == 0:
        n += 1
    return n * multiple_of


def coarsest_A(highest_mrad: float, energy_keV: float) -> float:
    """Pixels of a band-limited multislice that scatters up to this angle, at most."""
    return CUTOFF * 0.5 * 1e3 * float(wavelength_A(energy_keV)) / highest_mrad


def shape_over(box_A, sampling_A: float) -> tuple[int, int]:
    """(ny, nx) pixels over a box (x, y, z), none larger than `sampling_A`."""
    ny, nx = (quick_size(float(edge) / sampling_A) for edge in (box_A[1], box_A[0]))
    return ny, nx
