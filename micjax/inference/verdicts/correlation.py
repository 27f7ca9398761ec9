"""Whether what is left of data is white, and its covariance where it is not."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

SHORTEST = 8  # axis along which neighbours are compared
ALIKE = 0.1  # by which errors change, that nobody minds
NO_CHANCE = 3.3  # standard deviations: 1 axis in 500 of white noise, over all ranges
LONGEST = 1 / 3  # of an axis: of longer ranges there are too few

Data = Float[np.ndarray, "..."]


class Correlations(NamedTuple):
    """Of a residual, along the axes of the data.

    - `products`: means of pairs at all lags, `[2 n]` along an axis of n, in the order of `fft`.
    - `window`: what counts of them, 0 where they are no more than noise, up to 1; and `counts`, the
        pairs that there are of each residual.
    - `likeness`: the mean correlation of data up to `reach` from each other, along the axis where
        it is least like chance, `surprise` standard deviations of it. All 0 of white noise.
    """

    products: Data
    window: Data
    counts: Data
    likeness: float = 0.0
    reach: int = 0
    surprise: float = 0.0

    @property
    def covariance(self) -> Data:
        """At all lags."""
        return self.window * self.products

    def factor(self) -> float:
        """By how much more a mean of the data scatters than that of independent ones (Bartlett
        1946, J. R. Stat. Soc. 8, 27)."""
        covariance = self.covariance
        alone = covariance.ravel()[0]
        return float(np.sqrt(max(covariance.sum() / alone, 1.0))) if alone > 0 else 1.0


def correlations(unit: Float[np.ndarray, "m ..."], seen: Bool[np.ndarray, "m ..."]) -> Correlations:
    """Of m residuals together, along each axis by the range up to which the sum of the correlations
    is least like chance, with a window that falls to 0 beyond (Newey and West 1987, Econometrica
    55, 703; Politis 2003, J. Nonparametr. Stat. 15, 467)."""
    datum = unit.shape[1:]
    shape, axes = tuple(2 * n for n in datum), tuple(range(1, unit.ndim))

    def pairs(a: np.ndarray) -> np.ndarray:
        every = np.abs(np.fft.fftn(a, shape, axes)) ** 2
        return np.fft.ifftn(every.sum(axis=0)).real

    counts = np.round(pairs(seen.astype(float)))
    products = pairs(np.where(seen, unit, 0.0)) / np.maximum(counts, 1.0)
    window = (counts > 0.5).astype(float)
    residuals = max(int(seen.reshape(len(seen), -1).any(axis=1).sum()), 1)
    most = Correlations(products, window, counts / residuals)
    for axis, n in enumerate(datum):
        line = tuple(slice(0, n) if i == axis else 0 for i in range(len(datum)))
        reach, likeness, surprise = _range((window * products)[line], counts[line])
        if surprise > most.surprise:
            most = most._replace(likeness=likeness, reach=reach, surprise=surprise)
        lags = np.abs(np.fft.fftfreq(2 * n, 1.0 / (2 * n)))
        falls = np.clip(2.0 - lags / reach, 0.0, 1.0) if reach else (lags == 0).astype(float)
        window = window * falls.reshape(tuple(-1 if i == axis else 1 for i in range(len(datum))))
    return most._replace(window=window)


def _range(along: Float[np.ndarray, "n"], counts: Float[np.ndarray, "n"]):
    """The range up to which data are alike, how alike, and how little like chance; 0 without."""
    none = 0, 0.0, 0.0
    if len(along) < SHORTEST or not along[0] > 0:
        return none
    longest = int(LONGEST * len(along))
    ranges = 2 ** np.arange(int(np.log2(longest)) + 1)
    correlation = along[1 : longest + 1] / along[0]
    # that of white noise has a variance of one over the number of pairs
    total = np.cumsum(correlation)[ranges - 1]
    variance = np.cumsum(1.0 / np.maximum(counts[1 : longest + 1], 1.0))[ranges - 1]
    best = int(np.argmax(total / np.sqrt(variance)))
    likeness, surprise = total[best] / ranges[best], total[best] / np.sqrt(variance[best])
    if total[best] < ALIKE or surprise < NO_CHANCE:
        return none
    return int(ranges[best]), float(likeness), float(surprise)
