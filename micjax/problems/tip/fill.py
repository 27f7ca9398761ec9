"""The surface below a tip as the network has it, for images of any size."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from micjax.core.problem import InverseProblem
from micjax.core.ranges import check_ranges
from micjax.inference.stage import Arrays
from micjax.nets.tiles import tiled
from micjax.nets.weights import Network, load_network, warn_of_pixels
from micjax.physics.probes.lines import add_lines
from micjax.physics.tips.dilation import erode
from micjax.problems.tip.network import BOUND_SIGMAS, FEATURES, OF_A_PASS, Sight, estimated, sight

SHIPPED = pathlib.Path(__file__).with_name("network.h5")  # of micjax train tip
SURFACE = "forward.surface_nm"
NOTHING_SIGMAS = 0.01  # that a tip takes off, at most, is nothing to fill
NINETY = 1.645  # standard deviations on both sides hold 90 % of a normal distribution
NOTHING_NM = -1e9  # deeper than any feature: no tip there


def network_of(path: str | None, pixel_nm: ArrayLike | None = None) -> Network:
    """The network and what it is for.

    **Arguments:**

    - `pixel_nm`: of the images; what a network of other pixels has learned is told in the log.

    **Raises:** `FileNotFoundError`; `ValueError` for a file that is not of `micjax train tip`.
    """
    network = load_network(path or SHIPPED)
    channels = network.options.get("channels_in"), network.options.get("channels_out")
    passes = network.facts.get("passes", 1)
    if not isinstance(passes, int) or isinstance(passes, bool):
        raise ValueError(f"{path}: passes = {passes!r}: a whole number is needed")
    check_ranges("passes", passes, where=f"{path}: ")
    wanted = FEATURES + (OF_A_PASS if passes != 1 else 0)
    factor = network.facts.get("factor")
    calibrated = isinstance(factor, float | int) and 0.0 < factor < np.inf
    if channels != (wanted, 2) or not calibrated:
        raise ValueError(
            f"{path}: a network of {channels[0]} to {channels[1]} channels for "
            f"{network.facts.get('problem')}; one of micjax train tip is needed"
        )
    warn_of_pixels(path or SHIPPED, network, pixel_nm)
    return network


def levelled(y: Float[Array, "n ny nx"], offsets_nm: Float[Array, "n ny"]):
    """The images without the offsets of their lines."""
    return jax.vmap(add_lines)(y, -offsets_nm)


def filled(problem: InverseProblem, x, y, key, report, *, network: Network) -> Arrays:
    """Surfaces (nm) and the half widths of their intervals, `[n, iy, ix]`."""
    forward, sigma = problem.forward, problem.noise.sigma
    tip, flat = forward.tip(), levelled(y, forward.line_offsets_nm[x])
    estimates = []
    for i, image in enumerate(flat):
        estimates.append(surface_of(network, image, tip, sigma))
        report((i + 1) / len(flat), f"surface {i + 1} of {len(flat)}")
    surface, half = (np.stack(a) for a in zip(*estimates, strict=True))
    return {"filled_nm": surface, "half_width_nm": half}


@eqx.filter_jit
def _seen(image, tip, sigma) -> Sight:
    return sight(image, tip, sigma)


@eqx.filter_jit
def _eroded(image, tip):
    return erode(image, tip)


@eqx.filter_jit
def _said(network, features: Float[Array, "y x c"]) -> Float[Array, "y x 2"]:
    return network(features)


def surface_of(network: Network, image, tip, sigma) -> tuple[np.ndarray, np.ndarray]:
    """The surface below an image and the half width of its interval (nm), both `[iy, ix]`."""
    upper = np.asarray(_eroded(image, tip))
    if np.max(np.asarray(image) - upper) < NOTHING_SIGMAS * float(sigma):
        return np.asarray(image), np.full(image.shape, NINETY * float(sigma))  # a needle
    centred, (dy, dx) = apex_in_the_middle(np.asarray(tip))
    seen, multiple = _seen(image, jnp.asarray(centred), sigma), network.network.multiple

    def says(features):
        parts = tiled(_said, network.network, np.asarray(features, np.float32), multiple)
        return jnp.asarray(parts)

    estimate = estimated(says, seen, network.facts.get("passes", 1))
    # S(x) = S'(x - u) of the tip whose apex is moved by u into the middle
    rows, columns = (
        np.clip(np.arange(n) - d, 0, n - 1) for n, d in zip(image.shape, (dy, dx), strict=True)
    )
    surface, scale = (np.asarray(a)[np.ix_(rows, columns)] for a in estimate[:2])
    surface = np.minimum(surface, upper + BOUND_SIGMAS * float(sigma))
    return surface, network.facts["factor"] * scale


def apex_in_the_middle(tip: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The same tip with its highest pixel in the middle of a larger window, as the tips from which
    the network has learned, and by how many pixels (y, x) that was off it."""
    top = np.unravel_index(tip.argmax(), tip.shape)
    off = [int(t) - n // 2 for t, n in zip(top, tip.shape, strict=True)]
    sides = [(max(-2 * d, 0), max(2 * d, 0)) for d in off]
    return np.pad(tip, sides, constant_values=NOTHING_NM), (off[0], off[1])


def with_filled(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    if "filled_nm" not in arrays:  # interrupted before
        return problem
    return problem.at({SURFACE: jnp.asarray(arrays["filled_nm"])})
