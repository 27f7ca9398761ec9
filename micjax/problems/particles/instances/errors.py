"""How far sizes of instances are off, as simulations have it.

    var(area) = a sum p (1 - p) + b (pixels of its edge next to another instance)

p is the probability of the foreground, of which the network is less sure where there is more noise,
more blur or less contrast; neighbouring pixels are wrong together, so that a is not one. What is
between two instances has no such probability. The numbers are such that 90 % intervals hold in nine
of ten instances of the seeds 0 to 9 of `experiments/particles`; on others they hold less often, see
there.
"""

import numpy as np
from jaxtyping import Float

from micjax.problems.particles.instances.table import Shapes

OF_DOUBT, OF_CONTACT = 173.0, 68.8
OF_LONGEST, OF_SHORTEST, OF_ASPECT, OF_SOLIDITY = (
    1.59,
    1.11,
    1.52,
    0.48,
)  # over the relative error of the diameter


def area_sd(shapes: Shapes, doubt: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Standard deviation of areas, pixels."""
    return np.sqrt(OF_DOUBT * doubt + OF_CONTACT * shapes.shared_px + 1.0)


def errors_of(shapes: Shapes, doubt: Float[np.ndarray, "n"]) -> dict[str, np.ndarray]:
    """Standard deviations by the name of the field of `Shapes`."""
    area = area_sd(shapes, doubt)
    relative = 0.5 * area / shapes.area_px2  # of the diameter
    return {
        "area_px2": area,
        "diameter_px": relative * shapes.diameter_px,
        "longest_px": OF_LONGEST * relative * shapes.diameter_px,
        "shortest_px": OF_SHORTEST * relative * shapes.diameter_px,
        "aspect": OF_ASPECT * relative * shapes.aspect,
        "solidity": OF_SOLIDITY * relative,
    }
