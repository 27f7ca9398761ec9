"""How `micjax.problems.denoise` is solved: the drift of the frames, then a network that learns from
their noise; how far it is to be trusted is looked up in quanta that it never saw."""

import pathlib
from collections.abc import Iterator
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem
from micjax.core.tree import replace
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.stage import Arrays, Search, Stage
from micjax.nets.tiles import tiled
from micjax.nets.train import Schedule, courses
from micjax.nets.unet import UNet
from micjax.nets.weights import Network, load_network
from micjax.physics.noise import Poisson
from micjax.problems.denoise.drift import MOST_DRIFT_PX, aligned, drift_of
from micjax.problems.denoise.network import (
    NoiseLaw,
    denoised,
    from_thinning,
    held_out_of,
    paired,
)
from micjax.problems.denoise.trust import looked_up

SHIPPED = pathlib.Path(__file__).with_name("network.h5")  # of micjax train denoise
IMAGE, DRIFT = "forward.image", "forward.drift_px"
PATIENCE = 8  # looks, at every 50th step, without a better one: it has begun to learn by heart
FEWEST_FRAMES = 4  # that are parts by themselves


def stages(
    problem: InverseProblem,
    x: Int[Array, "n"],
    y: Float[Array, "n h w"],
    *,
    steps: int = 1000,
    learning_rate: float = 1e-3,
    most_drift_px: int = MOST_DRIFT_PX,
) -> list:
    """Drift, network, and the drift again to a part of a pixel.

    **Arguments:**

    - `steps`: batches of crops that the network learns from, at most.
    - `learning_rate`: of its optimiser.
    - `most_drift_px`: how far a frame may be from the one before it.
    """
    schedule = Schedule(steps=steps, learning_rate=learning_rate, patience=PATIENCE)

    def drift(problem, x, y, key, report) -> Arrays:
        return {"drift_px": drift_of(np.asarray(y, float), most_drift_px)}

    def learned(problem, x, y, key, report, before) -> Iterator[Arrays]:
        yield from _learned(problem, y, schedule, key, report, before)

    network = Search(learned, _with_image, "network", goes_on=True)
    if len(y) == 1:
        return [network]
    return [
        Search(drift, _with_drift, "drift"),
        network,
        Stage(LBFGS(), 50, free=[DRIFT], tolerance=1e-3),
    ]


def combined(problem: InverseProblem, y: Float[Array, "n h w"]) -> tuple[np.ndarray, NoiseLaw]:
    """All frames as one image, counts added or values averaged, and the law of its noise."""
    frames = aligned(y, problem.forward.drift_px)
    if isinstance(problem.noise, Poisson):
        return np.sum(frames, axis=0), NoiseLaw()
    return np.mean(frames, axis=0), NoiseLaw(problem.noise.sigma / np.sqrt(len(frames)), False)


def parts_of(problem: InverseProblem, y: Float[Array, "n h w"], key: Array):
    """The same image as independent parts. Frames are, even if their noise has been smeared from
    pixel to pixel; where they are too few the quanta are dealt out."""
    if len(y) >= FEWEST_FRAMES:
        return aligned(y, problem.forward.drift_px).astype(np.float32)
    image, law = combined(problem, y)
    return law.dealt(np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel()), image)


def checked_network(net: str | None, shape: tuple[int, int]) -> Network:
    """Where the network begins: as it was trained on made-up crystals, or as the file `net` has it.

    **Raises:** `FileNotFoundError`; `ValueError` for one that is not of `micjax train denoise`, or
    an image that is too small for it.
    """
    network, path = load_network(net or SHIPPED), net or SHIPPED
    asked = {"channels_in": 1, "channels_out": 1, "condition": 0}
    other = {n: network.options.get(n, v) for n, v in asked.items()}
    if network.architecture != "UNet" or other != asked:
        raise ValueError(
            f"{path}: a {network.architecture} of {network.options}; a UNet from one channel to "
            "one, of micjax train denoise, is needed"
        )
    if min(shape) < network.network.multiple:
        raise ValueError(
            f"{shape[0]} x {shape[1]} pixels: the network of {path} needs at least "
            f"{network.network.multiple} x {network.network.multiple}"
        )
    return network


def _learned(problem, y, schedule, key, report, before) -> Iterator[Arrays]:
    image, law = combined(problem, y)
    hands = parts_of(problem, y, key)
    training = from_thinning(checked_network(problem.forward.net, image.shape).network, law, hands)
    through = _through(training.network)
    # noise that has been smeared differs along the two axes
    ways = TURNED if len(y) < FEWEST_FRAMES else MIRRORED
    begun = {n.removeprefix("net."): a for n, a in before.items() if n.startswith("net.")}
    for course in courses(training, schedule, key, begun):
        report(len(course.losses) / schedule.steps, f"held-out loss {course.held_out[-1]:.5g}")
        best = course.state.best
        arrays = {f"net.{n}": a for n, a in course.arrays().items()}
        arrays["image"] = through(best, law, image, ways if course.reason else AS_IT_IS)
        if course.reason:
            arrays |= _trust(partial(through, best, ways=ways), law, hands)
        yield arrays


def _trust(through, law: NoiseLaw, hands: Float[np.ndarray, "p h w"]) -> Arrays:
    """How good the image is: of each fifth of the parts in turn, what the others make of it moves
    the image as noise does; what the network never learned from says by how much it is wrong."""
    number, out = len(hands), held_out_of(len(hands))
    group = (np.arange(number) - number) // out  # the last one, -1, never was learned from
    others = [jnp.asarray(group == g) for g in range(-(number // out), 0)]
    parts = [paired(law, jnp.asarray(hands), ~other, other) for other in others]
    images = [through(part.law, part.kept) for part in parts]
    share = 1.0 - out / number if law.counted else 1.0
    return looked_up(images[-1], np.std(images, axis=0) / share, parts[-1])


AS_IT_IS = [(False, 1, 1)]
MIRRORED = [(False, up, left) for up in (1, -1) for left in (1, -1)]
TURNED = [*MIRRORED, *((True, up, left) for _, up, left in MIRRORED)]


def _through(network: UNet):
    """The mean of data of any size, by the network with other weights: the mean of what it makes of
    the image mirrored and turned as `ways` say (Timofte 2016)."""

    @eqx.filter_jit
    def seen(weights, law, tile):
        return denoised(replace(network, weights), law, tile)

    def tile_by(asked, tile):
        weights, law, ways = asked
        total = 0.0
        for turned, up, left in ways:
            image = np.asarray(tile)[::up, ::left, 0]
            image = jnp.asarray(image.T if turned else image)
            mean = np.asarray(seen(weights, law, image))
            total = total + (mean.T if turned else mean)[::up, ::left]
        return total[..., None] / len(ways)

    def through(weights, law: NoiseLaw, y, ways=AS_IT_IS) -> Float[np.ndarray, "h w"]:
        image = np.asarray(y, jnp.result_type(float))[..., None]
        return tiled(tile_by, (weights, law, ways), image, network.multiple)[..., 0]

    return through


def _with_drift(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    return problem.at({DRIFT: jnp.asarray(arrays["drift_px"], float)})


def _with_image(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    if "image" not in arrays:  # interrupted before
        return problem
    frames = len(problem.forward.drift_px) if isinstance(problem.noise, Poisson) else 1
    return problem.at({IMAGE: jnp.asarray(arrays["image"] / frames, float)})
