"""How far frames have moved against the first one: the peak of their cross-correlation."""

import numpy as np
import scipy.ndimage
from jaxtyping import ArrayLike, Float, Int

SMOOTH_PX = 1.0  # noise of single pixels has no part in it
MOST_DRIFT_PX = 12  # from frame to frame


def drift_of(frames: Float[np.ndarray, "n y x"], most_px: int) -> Int[np.ndarray, "n 2"]:
    """(y, x) of each frame in whole pixels, frame(r) = first(r + drift).

    Each frame is compared with the mean of those before it, near where the last one was: a lattice
    looks the same one cell further.

    **Arguments:**

    - `most_px`: how far a frame may be from the one before it.
    """
    size = np.array(frames.shape[1:])
    windows = [np.hanning(n + 2)[1:-1] for n in size]
    window = windows[0][:, None] * windows[1]
    smooth = [scipy.ndimage.gaussian_filter(f, SMOOTH_PX) for f in frames]
    total, last = smooth[0].copy(), np.zeros(2, int)
    drifts = [last]
    for count, frame in enumerate(smooth[1:], start=1):
        before = total / count
        product = np.fft.rfft2(window * (before - before.mean()))
        product *= np.conj(np.fft.rfft2(window * (frame - frame.mean())))
        correlation = np.fft.irfft2(product, s=tuple(size))
        reach = np.arange(-most_px, most_px + 1)
        near = correlation[np.ix_(*((last[i] + reach) % size[i] for i in (0, 1)))]
        last = last + np.array(np.unravel_index(near.argmax(), near.shape)) - most_px
        drifts.append(last)
        total += moved_back(frame, last)
    return np.array(drifts, int)


def moved_back(frame: Float[np.ndarray, "y x"], drift_px) -> Float[np.ndarray, "y x"]:
    """On the pixels of the first frame; what was not seen is as its nearest edge."""
    rows, columns = (np.arange(n) - d for n, d in zip(frame.shape, drift_px, strict=True))
    inside = [np.clip(i, 0, n - 1) for i, n in zip((rows, columns), frame.shape, strict=True)]
    return frame[np.ix_(*inside)]


def aligned(frames: Float[ArrayLike, "n y x"], drift_px) -> Float[np.ndarray, "n y x"]:
    """All frames on the pixels of the first one, to whole pixels."""
    drift = np.round(np.asarray(drift_px)).astype(int)
    pairs = zip(np.asarray(frames, float), drift, strict=True)
    return np.array([moved_back(frame, d) for frame, d in pairs])


def sd_between(frames: Float[np.ndarray, "n y x"]) -> float:
    """Standard deviation of a pixel from frame to frame, once they are aligned; whatever the noise
    of neighbouring pixels has in common."""
    on_first = aligned(frames, drift_of(frames, MOST_DRIFT_PX))
    rim = [min(n // 4, MOST_DRIFT_PX * len(frames)) for n in frames.shape[1:]]
    inside = on_first[:, rim[0] : -rim[0], rim[1] : -rim[1]]
    return float(np.sqrt(inside.var(axis=0, ddof=1).mean()))
