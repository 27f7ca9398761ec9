"""Particles and grains in an image: where each of them is, how large, and of what shape.

    y ~ Normal(background + signal, sigma)

The signal is a plateau for each instance. A network that has learned from simulated micrographs and
topographies says which pixel belongs to which instance; what contrast each of them has, and whether
it is above the noise, says the model.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem, free
from micjax.core.ranges import positive
from micjax.io.fields import as_pixel
from micjax.physics.noise import Gaussian
from micjax.problems.particles.conclusion import conclude as conclude
from micjax.problems.particles.contrast import contrasts, grid_of
from micjax.problems.particles.data import load as load
from micjax.problems.particles.model import Plateaus
from micjax.problems.particles.network import checked_network
from micjax.problems.particles.network import training as training
from micjax.problems.particles.segmentation import (
    POLARITIES,
    only_of_the_network,
    trusted_labels,
)
from micjax.problems.particles.show import compare as compare
from micjax.problems.particles.show import figures as figures
from micjax.problems.particles.show import training_figures as training_figures
from micjax.problems.particles.simulated.domes import film
from micjax.problems.particles.simulated.micrographs import micrograph
from micjax.problems.particles.simulated.recorded import BLOCK_PX
from micjax.problems.particles.stages import stages as stages

SAMPLES = ("particles", "grains")
DRAWN = 4  # examples, of which that with most instances is shown


def problem(
    ny: int = 128,
    nx: int = 128,
    sigma: float = 0.1,
    mean: float = 0.0,
    polarity: str = "auto",
    pixel_nm: float | Sequence[float] | None = None,
    net: str | None = None,
    labels: str | None = None,
) -> InverseProblem:
    """An image of particles or grains.

    **Arguments:**

    - `ny`, `nx`: pixels.
    - `sigma`: standard deviation of the noise.
    - `mean`: about that of a pixel.
    - `polarity`: `bright` or `dark`: only instances that are so against their rim; `both`; `auto`:
        what most are not is hardly believed.
    - `pixel_nm`: edge of a pixel, if it is known, one number or (dy, dx).
    - `net`: a file of weights, of `micjax train particles`; those of micjax if none is given.
    - `labels`: `package.module:function` below the current folder, image -> labels, in place of a
        network, with which neither `net` nor a `polarity` goes.

    **Raises:** `ValueError` for another polarity, numbers that are not positive, a file that is no
        network for this, a function that may not be imported, settings of the network beside it;
        `FileNotFoundError`.
    """
    positive(sigma=sigma)
    if polarity not in POLARITIES:
        raise ValueError(f"polarity = {polarity!r}: one of {', '.join(POLARITIES)} is needed")
    only_of_the_network(labels, net=net, polarity=None if polarity == "auto" else polarity)
    if labels is not None:
        trusted_labels(labels)
    pixel_nm = None if pixel_nm is None else as_pixel(pixel_nm)
    if net is not None:
        checked_network(net, pixel_nm)  # told here, before anything is computed
    background = np.full(grid_of((ny, nx)), mean)
    forward = Plateaus(np.zeros((ny, nx)), background, pixel_nm, polarity, net, labels)
    priors = {"forward.signal": free(), "forward.background": free()}
    return InverseProblem(forward, Gaussian(sigma), priors)


def example(
    key, ny: int = 128, nx: int = 128, sample: str = "particles"
) -> tuple[InverseProblem, Int[Array, "1"], Float[Array, "ny nx"]]:
    """A simulated micrograph of bright particles, or a topography of grains.

    **Raises:** `ValueError` for another sample.
    """
    if sample not in SAMPLES:
        raise ValueError(f"sample = {sample!r}: one of {', '.join(SAMPLES)} is needed")
    draw, size = (micrograph if sample == "particles" else film), max(ny, nx)
    size = -(-size // BLOCK_PX) * BLOCK_PX
    drawn = jax.jit(lambda keys: jax.lax.map(lambda k: draw(k, size), keys))(
        jax.random.split(key, DRAWN)
    )
    cut = np.maximum(np.asarray(drawn.labels)[:, :ny, :nx], 0)
    many = int(np.argmax([len(np.unique(labels)) for labels in cut]))
    image = np.asarray(drawn.image)[many, :ny, :nx]
    numbered = np.unique(np.append(cut[many], 0), return_inverse=True)[1][:-1]
    labels = numbered.reshape(image.shape)
    contrast = contrasts(image, labels)
    truth = problem(ny, nx, contrast.sigma, float(image.mean()))
    truth = truth.at(
        {"forward.signal": contrast.signal(labels), "forward.background": contrast.background}
    )
    return truth, jnp.zeros(1, int), jnp.asarray(image, float)
