"""The posterior density in the unconstrained coordinates, which samplers and Laplace work in."""

from jaxtyping import Array, Float

from micjax.core.coordinates import Coordinates
from micjax.core.problem import InverseProblem, Theta, neg_log_joint


def potential(theta: Theta, problem: InverseProblem, x, y) -> Float[Array, ""]:
    """-log p(theta | y) up to a constant: `neg_log_joint` - log |d values / d theta|."""
    coordinates = Coordinates(problem)
    volume = coordinates.log_volume(coordinates.vector(theta))
    return neg_log_joint(theta, problem, x, y) - volume
