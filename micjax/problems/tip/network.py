"""What a network says of a surface below a tip, within what the physics allows.

The erosion R of the scan by the tip bounds the surface from above. Noise moves each contact, so the
bound is R + 4 sigma; where the tip touched one point alone the surface is within 4 sigma of R, and
the network only takes noise off. Elsewhere it says how far below the bound the surface lies, and
how sure that is. An unrolled network says so several times: between two passes it is shown what its
surface, under the tip, leaves of the scan (as in learned iterative reconstruction, Adler 2017).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from micjax.core.ranges import check_ranges
from micjax.nets.train import Training
from micjax.nets.trust.conformal import conformal_factor
from micjax.nets.unet import UNet
from micjax.physics.tips.dilation import certain, contacts, dilate, erode
from micjax.problems.tip.scenes import DEPTHS, NOISES, SIZE, surface, tips

BOUND_SIGMAS = 4.0  # noise of a contact is hardly ever further below
CONTACT_SIGMAS = 2.0  # contacts closer than this are not told apart
LEVEL = 0.9  # of the intervals
CALIBRATION = 16  # batches that the intervals are calibrated on
NEAR_PX = 9  # over which the gap is averaged that the fill is measured in
FEATURES = 10
OF_A_PASS = 2  # features that the surface of the pass before has


class Sight(NamedTuple):
    """What physics says of a scan, before any network."""

    image: Float[Array, "y x"]
    tip: Float[Array, "ky kx"]
    upper: Float[Array, "y x"]  # the erosion R
    sure: Bool[Array, "y x"]
    sigma: Float[Array, ""]
    unit: Float[Array, "y x"]  # of what the network says
    features: Float[Array, "y x c"]


class BoundedSurface(NamedTuple):
    """A surface, the scale of its error, and the bound that it is not above."""

    surface: Float[Array, "*b y x"]
    scale: Float[Array, "*b y x"]
    bound: Float[Array, "*b y x"]


def mean_near(image: Float[Array, "y x"], width: int) -> Float[Array, "y x"]:
    """The mean over a square about each pixel; beyond an edge its last pixel goes on."""
    for axis in (0, 1):
        pad = [(width // 2 + 1, width // 2) if a == axis else (0, 0) for a in (0, 1)]
        total = jnp.cumsum(jnp.pad(image, pad, mode="edge"), axis=axis)
        n = image.shape[axis]
        ends = (jax.lax.slice_in_dim(total, width, width + n, axis=axis), total)
        image = (ends[0] - jax.lax.slice_in_dim(ends[1], 0, n, axis=axis)) / width
    return image


def sight(image: Float[Array, "y x"], tip: Float[Array, "ky kx"], sigma: Float[Array, ""]) -> Sight:
    """The bound, what is certain, and what the network sees: the same for data times any number."""
    upper = erode(image, tip)
    gap = image - upper
    opened = dilate(upper, tip)
    tolerance = CONTACT_SIGMAS * sigma
    sure, multiplicity = certain(image, tip, tolerance)
    # seen from the surface: how many image pixels touched a point, and how many rivals it had there
    of_point, where = contacts(-upper, -image, tip[::-1, ::-1], tolerance)
    rows, columns = (jnp.arange(n) for n in image.shape)
    ky, kx = tip.shape
    y = jnp.clip(rows[:, None] + where // kx - ky // 2, 0, len(rows) - 1)
    x = jnp.clip(columns[None, :] + where % kx - kx // 2, 0, len(columns) - 1)
    rivals = multiplicity[y, x]
    unit = sigma + mean_near(jnp.abs(gap), NEAR_PX)  # an apex beside the centre pixel: gaps below 0
    whole = jnp.sqrt(jnp.mean(gap**2)) + sigma
    edges = jnp.stack([image - mean_near(image, w) for w in (5, 17)])
    features = [
        gap / unit,
        jnp.arcsinh(gap / whole),
        jnp.arcsinh((upper - mean_near(upper, 9)) / unit),
        *jnp.arcsinh(edges / unit),
        jnp.arcsinh((image - opened) / sigma),
        sure.astype(image.dtype),
        jnp.log1p(of_point.astype(image.dtype)),
        jnp.log1p(rivals.astype(image.dtype)),
        jnp.log(sigma / unit),
    ]
    return Sight(image, tip, upper, sure, sigma, unit, jnp.stack(features, axis=-1))


def estimated(network: Callable[[Array], Array], sights: Sight, passes: int = 1) -> BoundedSurface:
    """The surface as the network has it, below the bound.

    **Arguments:**

    - `passes`: 1: the network is asked once, with `FEATURES`. More: so many times, with
        `OF_A_PASS` more features, those of the surface that it had before; first the erosion.
    """
    margin = BOUND_SIGMAS * sights.sigma[..., None, None]
    bound, z = sights.upper + margin, sights.upper
    for _ in range(passes):
        features = [sights.features] if passes == 1 else [sights.features, left(sights, z)]
        said = network(jnp.concatenate(features, axis=-1))
        free = jnp.minimum(sights.upper + sights.unit * said[..., 0], bound)
        z = jnp.where(sights.sure, jnp.maximum(free, sights.upper - margin), free)
    return BoundedSurface(z, sights.unit * jnp.exp(jnp.clip(said[..., 1] - 1.0, -6.0, 4.0)), bound)


@jax.jit
def left(sights: Sight, z: Float[Array, "*b y x"]) -> Float[Array, "*b y x c"]:
    """How far a surface is below the erosion, and what its image leaves of the scan."""
    # one after the other: XLA takes minutes to compile a dilation of many at once
    scan = z, sights.tip
    seen = dilate(*scan) if z.ndim == 2 else jax.lax.map(lambda a: dilate(*a), scan)
    rest = (sights.image - seen) / sights.sigma[..., None, None]
    return jnp.stack([(z - sights.upper) / sights.unit, jnp.arcsinh(rest)], axis=-1)


class Example(NamedTuple):
    sights: Sight
    truth: Float[Array, "*b y x"]


def loss(network: Callable[[Array], Array], batch: Example, passes: int = 1) -> Float[Array, ""]:
    """log rms error of an image, and minus the Laplace log-likelihood of a pixel; both relative to
    the mean gap of the image."""
    estimate = estimated(network, batch.sights, passes)
    off = estimate.surface - batch.truth
    whole = batch.sights.unit.mean(axis=(-2, -1))
    rms = 0.5 * jnp.log(jnp.mean(off**2, axis=(-2, -1)) + 1e-12 * whole**2)
    scale = estimate.scale
    nats = jnp.abs(jax.lax.stop_gradient(off)) / scale + jnp.log(2.0 * scale)
    return jnp.mean(rms + nats.mean(axis=(-2, -1)) - 2.0 * jnp.log(whole))


def scores(
    network: Callable[[Array], Array], batch: Example, passes: int = 1
) -> Float[Array, "b y x"]:
    """|truth - surface| / scale, of which the intervals are made."""
    estimate = estimated(network, batch.sights, passes)
    return jnp.abs(batch.truth - estimate.surface) / estimate.scale


def drawn(key: Array, examples: int, edge_px: int) -> Example:
    """Scans of made-up surfaces and what is known of their tips."""

    def example(key):
        of_surface, of_tip, of_noise, of_level = jax.random.split(key, 4)
        truth = surface(of_surface, edge_px)
        tip, guess = tips(of_tip)
        low, high = jnp.log(jnp.array(NOISES))
        level = jax.random.uniform(of_level)
        sigma = jnp.exp(low + (high - low) * level)
        noise = jax.random.normal(of_noise, truth.shape)
        return sight(dilate(truth, tip) + sigma * noise, guess, sigma), truth

    return Example(*jax.lax.map(example, jax.random.split(key, examples)))


def training(
    examples: int = 16,
    edge_px: int = 64,
    width: int = 16,
    depth: int = 3,
    fold: int = 2,
    passes: int = 1,
) -> Training:
    """Made-up surfaces below made-up tips, which the network is told more or less wrongly.

    **Arguments:**

    - `examples`: images of a batch. `edge_px`: of each.
    - `width`, `depth`, `fold`: of the network, see `micjax.nets.unet.UNet`.
    - `passes`: more than one unroll the network: after each pass it sees what its surface leaves.

    **Raises:** `ValueError` for an edge that the network cannot halve as often, or that holds no
    tip.
    """
    check_ranges("passes", passes)
    more = OF_A_PASS if passes > 1 else 0
    options = {"channels_in": FEATURES + more, "channels_out": 2}
    options |= {"width": width, "depth": depth, "fold": fold}
    network = UNet(**options, rngs=nnx.Rngs(0))
    if edge_px % network.multiple or edge_px < 2 * SIZE:
        raise ValueError(
            f"edge_px = {edge_px}: a multiple of {network.multiple} from {2 * SIZE} on is needed"
        )

    def draw(key, data):
        return drawn(key, examples, edge_px)

    facts = {"relative_noise": list(NOISES), "relative_depths": list(DEPTHS), "passes": passes}
    return Training(
        network,
        draw,
        partial(loss, passes=passes),
        options=options,
        facts=facts,
        certificate=certificate,
    )


def certificate(training: Training, network: nnx.Module, key: Array) -> dict[str, float]:
    """By what the scale is multiplied: intervals then hold `LEVEL` of examples not learned from."""
    run = jax.jit(
        lambda k: scores(network, training.draw(k, training.data), training.facts["passes"])
    )
    keys = jax.random.split(key, CALIBRATION)
    off = np.concatenate([np.asarray(run(k), float).ravel() for k in keys])
    return {"level": LEVEL, "factor": conformal_factor(off, LEVEL)}
