"""Images at atomic resolution without their noise, from one noisy image or a drifting stack.

    y_n ~ Poisson(image(r + drift_n))    or    Normal(the same, sigma)

A network learns what the image is from its own noise: it is shown a part of the quanta and has to
foretell the others. No image without noise is needed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem, drawn_data, free
from micjax.core.ranges import positive
from micjax.nets.weights import warn_of_pixels
from micjax.physics.noise import Gaussian, Poisson
from micjax.problems.denoise.conclusion import conclude as conclude
from micjax.problems.denoise.conclusion import intervals as intervals
from micjax.problems.denoise.data import load as load
from micjax.problems.denoise.model import DriftingFrames
from micjax.problems.denoise.network import training as training
from micjax.problems.denoise.scenes import scene
from micjax.problems.denoise.show import compare as compare
from micjax.problems.denoise.show import figures as figures
from micjax.problems.denoise.show import training_figures as training_figures
from micjax.problems.denoise.stages import checked_network
from micjax.problems.denoise.stages import stages as stages

NOISES = ("poisson", "normal")
DRIFT_PX = 20.0  # about how far frames are from the first one


def problem(
    ny: int = 64,
    nx: int = 64,
    frames: int = 1,
    noise: str = "poisson",
    sigma: float = 1.0,
    level: float = 3.0,
    pixel_A: float | Sequence[float] | None = None,
    net: str | None = None,
) -> InverseProblem:
    """Frames of one image.

    **Arguments:**

    - `ny`, `nx`: pixels of a frame.
    - `frames`: how many of the same sample.
    - `noise`: `poisson` for counts, `normal` for values with one standard deviation.
    - `sigma`: that standard deviation.
    - `level`: about the mean of a pixel of a frame.
    - `pixel_A`: edge of a pixel, if it is known, one number or (dy, dx).
    - `net`: a file of weights that the network begins with, of `micjax train denoise`; those of
        micjax if none is given.

    **Raises:** `ValueError` for another noise, numbers that are not positive, and a file that is no
        network; `FileNotFoundError`.
    """
    positive(sigma=sigma, level=level)
    if pixel_A is not None:
        positive(pixel_A=pixel_A)
        dy, dx = (float(edge) for edge in np.broadcast_to(pixel_A, 2))
        pixel_A = dy, dx
    if net is not None:
        # told here, before anything is computed
        pixel_nm = None if pixel_A is None else 0.1 * np.array(pixel_A)
        warn_of_pixels(net, checked_network(net, (ny, nx)), pixel_nm)
    if noise not in NOISES:
        raise ValueError(f"noise = {noise!r}: one of {', '.join(NOISES)} is needed")
    counted = noise == "poisson"
    forward = DriftingFrames(np.full((ny, nx), level), np.zeros((frames, 2)), pixel_A, net)
    priors = {
        "forward.image": free(dist.constraints.positive if counted else dist.constraints.real)
    }
    if frames > 1:
        priors["forward.drift_px"] = dist.Normal(0.0, DRIFT_PX)
    return InverseProblem(forward, Poisson(1.0) if counted else Gaussian(sigma), priors)


def example(
    key,
    ny: int = 64,
    nx: int = 64,
    frames: int = 1,
    noise: str = "poisson",
    counts_per_pixel: float = 3.0,
) -> tuple[InverseProblem, Int[Array, "n"], Float[Array, "n y x"]]:
    """A made-up crystal, a few counts a pixel; several frames drift by about two pixels each."""
    of_scene, of_drift, of_noise = jax.random.split(key, 3)
    image = jax.jit(scene, static_argnums=1)(of_scene, max(ny, nx))[:ny, :nx]
    steps = 2.0 * jax.random.normal(of_drift, (frames, 2)).at[0].set(0.0)
    truth = problem(ny, nx, frames, noise, float(np.sqrt(counts_per_pixel)), counts_per_pixel)
    values = {"forward.image": counts_per_pixel * jnp.maximum(image, 1e-3)}
    values["forward.drift_px"] = jnp.cumsum(steps, axis=0)
    truth = truth.at(values if frames > 1 else {"forward.image": values["forward.image"]})
    frame = jnp.arange(frames)
    drawn = drawn_data(truth, frame, of_noise)
    return truth, frame, jnp.asarray(drawn, float)
