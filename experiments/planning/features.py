"""Which calibration feature to scan next, to learn a worn tip: a line over a ridge in a trench.

Settings x of a line: height, width of the ridge, width of the trenches beside it (nm). The tip is a
sphere on a cone with a lower second apex; the surface does not change along the ridge, so a line
sees the silhouette of the tip.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax import Gaussian, InverseProblem, parameter
from micjax.active.acquire.search import Box
from micjax.physics.tips.dilation import dilate
from micjax.physics.tips.shapes import sphere_cone_depth_nm

PIXELS, REACH = 64, 20  # of a line, of 1 nm each; of the tip to either side
WALL_NM = 1.0  # over which a wall rises


class Lines(eqx.Module):
    """One line over each feature."""

    radius_nm: Float[Array, ""] = parameter()
    half_angle_deg: Float[Array, ""] = parameter()
    offset_nm: Float[Array, ""] = parameter()
    drop_nm: Float[Array, ""] = parameter()
    zero_nm: Float[Array, ""] = parameter(default=0.0)

    def silhouette_nm(self) -> Float[Array, "k"]:
        """The highest points of the tip seen along the ridges."""
        u = jnp.arange(-REACH, REACH + 1.0)
        angle = jnp.deg2rad(self.half_angle_deg)
        first, second = (
            sphere_cone_depth_nm(jnp.abs(u - shift), self.radius_nm, angle)
            for shift in (0.0, self.offset_nm)
        )
        return -jnp.minimum(first, second + self.drop_nm)

    def __call__(self, x: Float[Array, "n 3"]) -> Float[Array, "n pixels"]:
        tip = self.silhouette_nm()[None]
        return jax.vmap(lambda s: dilate(feature_nm(*s)[None], tip)[0])(x) + self.zero_nm


def feature_nm(height_nm, width_nm, trench_nm) -> Float[Array, "pixels"]:
    """A ridge in the middle, trenches beside it, plateaus of the same height beyond."""
    away = jnp.abs(jnp.arange(PIXELS) - (PIXELS - 1) / 2)

    def step(edge):
        return jnp.clip((away - edge) / WALL_NM + 0.5, 0.0, 1.0)

    inner = width_nm / 2
    return height_nm * (1 - step(inner) + step(inner + trench_nm))


def problem() -> InverseProblem:
    return InverseProblem(
        Lines(5.0, 20.0, 6.0, 2.0),
        Gaussian(0.3),
        {
            "forward.radius_nm": dist.LogNormal(np.log(5.0), 0.3),
            "forward.half_angle_deg": dist.TruncatedNormal(20.0, 5.0, low=8.0, high=40.0),
            "forward.offset_nm": dist.Normal(0.0, 8.0),
            "forward.drop_nm": dist.HalfNormal(5.0),
            "forward.zero_nm": dist.Normal(0.0, 1.0),
        },
    )


TITLE = "Calibration feature (height, ridge, trench; nm) for the shape of a worn tip"
TARGETS = {"forward.radius_nm": 0.04, "forward.half_angle_deg": 0.4}
SPACE = Box([1.0, 1.0, 1.0], [20.0, 30.0, 20.0])
UNIFORM = 16
PLAN = {"draws": 32, "samples": 64, "starts": 2, "steps": 5}
LONGEST = 64
PARTICLES = 1024
LABEL = "always the highest and sharpest ridge"


def allowed(values) -> bool:
    """Truths: the second apex is within the window of the tip."""
    return abs(values["forward.offset_nm"]) < REACH


def classical(step: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sharpest feature in the widest surroundings images the tip itself."""
    return np.array([20.0, 1.0, 20.0])
