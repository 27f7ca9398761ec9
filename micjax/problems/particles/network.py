"""What the network of `micjax.problems.particles` sees, and what it learns from: simulations."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from micjax.nets.train import Training
from micjax.nets.unet import UNet
from micjax.nets.weights import Network, load_network, warn_of_pixels
from micjax.problems.particles.instances.decoder import HEADS, Targets, instance_loss, targets
from micjax.problems.particles.simulated import domes, micrographs

WINDOWS_PX = (8, 32, 64)  # over which brightness is compared


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


def checked_network(path, pixel_nm: float | None = None) -> Network:
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
    warn_of_pixels(path, network, pixel_nm)
    return network


def training(
    examples: int = 8,
    films: int = 3,
    edge_px: int = 128,
    width: int = 16,
    depth: int = 3,
    fold: int = 2,
    net: str | None = None,
) -> Training:
    """Made-up micrographs and topographies, with their labels.

    **Arguments:**

    - `examples`: images of a batch, `films` of them topographies of grains. `edge_px`: of each.
    - `width`, `depth`, `fold`: of the network, see `micjax.nets.unet.UNet`.
    - `net`: a file of weights that it begins with, whose architecture it has then.

    **Raises:** `ValueError` for an edge that the network cannot halve as often, and a file that is
        no network for this; `FileNotFoundError`.
    """
    options = {
        "channels_in": len(WINDOWS_PX),
        "channels_out": HEADS,
        "width": width,
        "depth": depth,
        "fold": fold,
    }
    if net is None:
        network = UNet(**options, rngs=nnx.Rngs(0))
    else:
        begun = checked_network(net)
        network, options = begun.network, begun.options
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


def loss(network, batch: tuple[Float[Array, "b y x c"], Targets]) -> Float[Array, ""]:
    return instance_loss(network(batch[0]), batch[1])
