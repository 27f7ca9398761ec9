"""Which of some known crystals a template is of: its cosine with their spectra, well turned."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.physics.patches.polar import Polar
from micjax.physics.patches.polycrystal import PlaneLattice, polycrystal
from micjax.physics.patches.unmixing.equivariant import correlations

ELECTRONS = 1e4  # a pixel: a simulated image has hardly any noise


def lattice_template(
    lattice: PlaneLattice, polar: Polar, width_A: float = 0.55
) -> Float[Array, "r t"]:
    """Of patches of one crystal, of length 1.

    `width_A`: standard deviation of a column in the image.
    """
    edge = 2 * polar.local.size
    options = {"sampling_A": polar.local.sampling_A, "width_A": width_A, "grains": 1}
    rng = np.random.default_rng(0)
    image = polycrystal(rng, [lattice], (edge, edge), electrons_per_px=ELECTRONS, **options).image
    rings = polar(polar.local(jnp.asarray(image - image.mean())))
    mean = jnp.mean(rings.reshape(-1, *rings.shape[2:]), axis=0)
    return mean / jnp.sqrt(jnp.sum(mean**2))


def likeness(
    templates: Float[Array, "k r t"], candidates: Float[Array, "c r t"]
) -> Float[np.ndarray, "k c"]:
    """Cosines at the angle that suits best, with a candidate or its mirror image: a crystal may lie
    either way up."""
    size = jnp.sqrt(jnp.sum(templates**2, axis=(1, 2)))
    both = [
        jnp.max(correlations(templates, v), axis=-1) for v in (candidates, candidates[..., ::-1])
    ]
    return np.asarray(jnp.maximum(*both) / jnp.where(size > 0.0, size, 1.0)[:, None])
