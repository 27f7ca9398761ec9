"""How near spectra and shares are to the truth. NumPy and SciPy only: peers.py uses it too."""

import numpy as np
import scipy.optimize
from specimens import SpectrumImage


def compared(image: SpectrumImage, w, h) -> tuple[dict[str, float], np.ndarray]:
    """Mean angle of spectra, mean absolute error of shares; which end member is which."""
    cosine = _unit(image.spectrum) @ _unit(h).T
    order = scipy.optimize.linear_sum_assignment(-cosine)[1]
    matched = np.minimum(cosine[np.arange(len(order)), order], 1.0)
    share, true = (_shares(a) for a in (w[:, order], image.abundance))
    return {
        "angle_deg": float(np.rad2deg(np.arccos(matched)).mean()),
        "share_error": float(np.abs(share - true).mean()),
    }, order


def mean_spectrum(image: SpectrumImage, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Doing nothing: each end member is the mean, everywhere in equal parts."""
    x = image.counts
    return np.repeat(x.sum(axis=1)[:, None] / count, count, axis=1), np.tile(
        x.sum(axis=0) / x.sum(), (count, 1)
    )


def _unit(a):
    return a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30)


def _shares(a):
    return a / np.maximum(a.sum(axis=1, keepdims=True), 1e-30)
