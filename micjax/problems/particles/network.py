"""What the network of `micjax.problems.particles` sees, and what it learns from: simulations."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from micjax.core.ranges import check_ranges
from micjax.nets.train import Training
from micjax.nets.unet import UNet
from micjax.nets.weights import Network, load_network, warn_of_pixels
from micjax.problems.particles.instances.decoder import HEADS, Targets, instance_loss, targets
from micjax.problems.particles.simulated import domes, micrographs

WINDOWS_PX = (8, 32, 64)  # over which brightness is compared
FEWEST_PX = max(WINDOWS_PX) // 2 + 1  # of an edge: what is missing of a tile is a mirror of it


def seen(image: Float[Array, "y x"]) -> Float[Array, "y x 3"]:
    """Brightness against the mean of the surroundings over their standard deviation, over squares
    of three sizes: what unit the values have does not matter.

    **Arguments:**

    - `image`: with edges that are multiples of 64.
    """
    return jnp.stack([_local(image, window) for window in WINDOWS_PX], axis=-1)


def _local(image, window: int):
    ny, nx = image.shape

    def mean(values):
        blocks = values.reshape(ny // window, window, nx // window, window).mean(axis=(1, 3))
        for axis in (0, 1):
            padded = jnp.pad(blocks, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], "edge")
            parts = [
                jax.lax.slice_in_dim(padded, i, i + blocks.shape[axis], axis=axis) for i in range(3)
            ]
            blocks = 0.25 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2]
        return jax.image.resize(blocks, (ny, nx), "linear")

    off = image - mean(image)
    spread = jnp.sqrt(mean(off**2))
    return jnp.arcsinh(off / (spread + 1e-3 * spread.max() + 1e-30))


def checked_network(path, pixel_nm: tuple[float, float] | None = None) -> Network:
    """The network of a file.

    **Arguments:**

    - `pixel_nm`: of the images; a network that has learned from much larger or smaller pixels is
        told.

    **Raises:** `ValueError` for a network of another kind; `FileNotFoundError`.
    """
    network = load_network(path)
    channels = [network.options.get(n, 1) for n in ("channels_in", "channels_out")]
    if channels != [len(WINDOWS_PX), HEADS]:
        raise ValueError(
            f"{path}: a network from {channels[0]} to {channels[1]} channels; one from "
            f"{len(WINDOWS_PX)} to {HEADS} is needed, of micjax train particles"
        )
    warn_of_pixels(path, network, None if pixel_nm is None else np.array(pixel_nm))
    return network


def training(
    examples: int = 8,
    films: int = 3,
    edge_px: int = 128,
    width: int | None = None,
    depth: int | None = None,
    fold: int | None = None,
    net: str | None = None,
) -> Training:
    """Made-up micrographs and topographies, with their labels.

    **Arguments:**

    - `examples`: images of a batch, `films` of them topographies of grains. `edge_px`: of each.
    - `width`, `depth`, `fold`: of the network, see `micjax.nets.unet.UNet`; 16, 3 and 2 if they are
        not given, or those of `net`.
    - `net`: a file of weights that it begins with, whose architecture it has then.

    **Raises:** `ValueError` for no examples or more films than examples, an edge that the network
        cannot halve as often, a file that is no network for this, and another architecture than
        that of the file; `FileNotFoundError`.
    """
    check_ranges("training", {"examples": examples, "films": films, "edge_px": edge_px})
    if films > examples:
        raise ValueError(f"films = {films}: at most all of the {examples} examples may be films")
    asked = {"width": width, "depth": depth, "fold": fold}
    if net is None:
        options = {"channels_in": len(WINDOWS_PX), "channels_out": HEADS}
        options |= {"width": 16, "depth": 3, "fold": 2}
        options |= {n: v for n, v in asked.items() if v is not None}
        network = UNet(**options, rngs=nnx.Rngs(0))
    else:
        begun = checked_network(net)
        network, options = begun.network, begun.options
        _check_architecture(net, options, asked)
    multiple = max(network.multiple, *WINDOWS_PX)
    if edge_px % multiple:
        raise ValueError(f"edge_px = {edge_px}: a multiple of {multiple} is needed")
    most = max(micrographs.PARTICLES, domes.grains(edge_px))

    def draw(key, data):
        of_image, of_sign = jax.random.split(key)
        keys = jax.random.split(of_image, examples)
        projected = jax.vmap(lambda k: micrographs.micrograph(k, edge_px))(keys[films:])
        grains = jax.vmap(lambda k: domes.film(k, edge_px))(keys[:films])
        image, labels = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), projected, grains)
        # bright or dark: the network has to see itself what lies on what
        image = image * jnp.where(jax.random.bernoulli(of_sign, 0.5, (examples, 1, 1)), 1.0, -1.0)
        return jax.vmap(seen)(image), jax.vmap(lambda a: targets(a, most))(labels)

    facts = {
        "diameter_px": list(micrographs.ASKED_PX),
        "of": "simulated micrographs and topographies",
    }
    return Training(network, draw, loss, options=options, facts=facts)


def _check_architecture(net: str, options: dict, asked: dict) -> None:
    signature = inspect.signature(UNet.__init__).parameters
    for name, value in asked.items():
        of_file = options.get(name, signature[name].default)
        if value is not None and value != of_file:
            raise ValueError(f"{name} = {value}: the network of {net} has {name} = {of_file}")


def loss(network, batch: tuple[Float[Array, "b y x c"], Targets]) -> Float[Array, ""]:
    return instance_loss(network(batch[0]), batch[1])
