"""Series of noise that tests share."""

import numpy as np


def coloured(n: int, r: float, rows: int = 1, seed: int = 0) -> np.ndarray:
    """Autoregressions with a variance of 1, neighbours of which correlate by `r`, `[rows, n]`."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(rows, n))
    for i in range(1, n):
        y[:, i] = r * y[:, i - 1] + np.sqrt(1.0 - r**2) * y[:, i]
    return y
