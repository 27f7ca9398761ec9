"""What no tip exceeds that can have taken the images, of whatever shape it is: the classical bound
of Villarrubia at all the points that bind, from which a free form starts.
"""

import numpy as np

from micjax.physics.tips.evidence import Frames, Kernel, Scalar, admissible, misfit
from micjax.physics.tips.villarrubia import villarrubia

_ROUNDS = 8  # after which the bound moves by less than the noise
_WORK = 6e8  # sums of a round, of which it takes (pixels of the tip)^2 a point


def bound(images: Frames, size: tuple[int, int], threshold_nm: float) -> Kernel:
    """The classical bound at all points, or at the most sharply bent ones of large images."""
    most = max(500, int(_WORK / (size[0] * size[1]) ** 2))
    return villarrubia(images, size, threshold_nm, _ROUNDS, everywhere=True, most=most)[0]


def deepened(images: Frames, tip: Kernel, sigma_nm: Scalar, key, allowance: float) -> Kernel:
    """A tip too blunt, its depths multiplied until it is admissible: by up to 100."""
    low, high = 0.0, np.log(100.0)
    for _ in range(8):
        middle = (low + high) / 2
        seen, floor, _ = misfit(images, float(np.exp(middle)) * tip, sigma_nm, key)
        low, high = (low, middle) if bool(admissible(seen, floor, allowance)) else (middle, high)
    return float(np.exp(high)) * tip
