"""The thermal diffuse part of a pattern, out of what one run of the physics says (ZSense, team 2).

One run through atoms whose potentials are blurred by their motion (Debye-Waller) gives the elastic
pattern but for the beam that thermal motion takes out of it. A conditional U-Net says how much that
is, pixel by pixel, and where it goes: two positive factors on two positive patterns. What leaves
the elastic pattern and does not appear in the diffuse one was scattered beyond the detector.
"""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from micjax.nets.train import Training
from micjax.nets.unet import UNet

SIZES = {"width": 24, "depth": 3, "blocks": 1}
BEAM = 4096.0  # pixels: a pattern of ones is a whole beam
DIM = 1e-3  # of that mean: below it, logarithms stop
SMOOTH_PX = 6.0  # the first guess of the diffuse part: the elastic one, smeared
SHARE = 0.1  # of it
LOSSES = {"diffuse": 1.0, "elastic": 1.0, "flux": 30.0, "rings": 3.0}
RINGS = 32


def told(data: h5py.File, which: np.ndarray) -> dict[str, np.ndarray]:
    """Of each pattern of the crystals `which`: `damped`, `static` and the Z map, twelve conditions,
    and the two parts of what was simulated, without the bias of so many configurations."""
    count = json.loads(data.attrs["settings"])["configurations"]

    def images(name):
        values = data[name][: len(which)][which].astype(np.float32)
        return values.reshape(-1, *values.shape[-2:])

    total, elastic = BEAM * images("total"), BEAM * images("elastic")
    diffuse = (total - elastic) * (count / (count - 1))
    cells, places = data["cells"][: len(which)][which], data["place_A"][: len(which)][which]
    shape = (*cells.shape, places.shape[1])
    z_map = data["z_map"][: len(which)][which]
    z_map = np.broadcast_to(z_map[:, None], (*shape, *z_map.shape[-2:]))
    edge = data["edge_A"][: len(which)][which][:, None, None]
    phase = 2.0 * np.pi * places[:, None] / edge[..., None]
    crystal = [
        data["elements"][: len(which)][which] / 50.0,
        data["u_A2"][: len(which)][which] / 0.01,
    ]
    vector = [
        np.broadcast_to(data["thickness_A"][: len(which)][which][..., None] / 60.0, shape)[
            ..., None
        ],
        np.broadcast_to(edge - 3.9, shape)[..., None],
        *(np.broadcast_to(c[:, None, None], (*shape, 3)) for c in crystal),
        *(np.broadcast_to(f(phase), (*shape, 2)) for f in (np.cos, np.sin)),
    ]
    return {
        "damped": BEAM * images("damped"),
        "static": BEAM * images("static"),
        "z_map": z_map.reshape(-1, *z_map.shape[-2:]).astype(np.float32) / 50.0,
        "vector": np.concatenate(vector, -1).reshape(-1, 12).astype(np.float32),
        "elastic": total - diffuse,
        "diffuse": diffuse,
    }


def network(seed: int) -> UNet:
    return UNet(4, 2, **SIZES, condition=12, rngs=nnx.Rngs(seed))


def smeared(pattern: Float[Array, "n ky kx"]) -> Float[Array, "n ky kx"]:
    """By a Gaussian, beyond the edges nothing."""
    r = jnp.arange(pattern.shape[-1])
    kernel = jnp.exp(-0.5 * (r[:, None] - r) ** 2 / SMOOTH_PX**2)
    kernel = kernel / kernel.sum(axis=1).max()
    return jnp.einsum("ij,njk,lk->nil", kernel, pattern, kernel)


def parts(network: UNet, seen: dict) -> tuple[Float[Array, "n ky kx"], Float[Array, "n ky kx"]]:
    """The elastic and the diffuse pattern."""
    damped = seen["damped"]
    begun = SHARE * smeared(damped) + DIM
    inputs = [jnp.log(p + DIM) for p in (damped, seen["static"], begun)]
    out = network(jnp.stack([*inputs, seen["z_map"]], axis=-1), seen["vector"])
    return damped * jnp.exp(out[..., 0]), begun * jnp.exp(out[..., 1])


def rings(pattern: Float[Array, "n ky kx"]) -> Float[Array, "n r"]:
    """Sums over rings, a pixel wide."""
    r = np.arange(pattern.shape[-1]) - (pattern.shape[-1] - 1) / 2
    ring = np.minimum(np.hypot(r[:, None], r).astype(int), RINGS)
    return pattern.reshape(len(pattern), -1) @ jnp.asarray(
        (ring.ravel()[:, None] == np.arange(RINGS)).astype(np.float32)
    )


def loss(network: UNet, seen: dict) -> Float[Array, ""]:
    """Of the diffuse part the likelihood of a mean of intensities (gamma); of the elastic part, of
    all rings and of the whole what they are off by, relatively."""
    elastic, diffuse = parts(network, seen)
    total, wanted = elastic + diffuse, seen["elastic"] + seen["diffuse"]
    gamma = seen["diffuse"] / diffuse + jnp.log(diffuse)
    off = jnp.abs(elastic - seen["elastic"]).sum((1, 2)) / seen["elastic"].sum((1, 2))
    flux = jnp.abs(total.sum((1, 2)) / wanted.sum((1, 2)) - 1.0)
    of_rings = jnp.abs(rings(total) / rings(wanted) - 1.0)
    told = {"diffuse": gamma, "elastic": off, "flux": flux, "rings": of_rings}
    return sum(weight * told[name].mean() for name, weight in LOSSES.items())


def training(learn: dict, stop: dict, examples: int = 16, seed: int = 0) -> Training:
    """Patterns that were simulated, mirrored and turned at random: a crystal that is mirrored is
    another crystal of the same law, with its probe elsewhere."""

    def draw(key, data):
        of_index, of_turn = jax.random.split(key)
        index = jax.random.randint(of_index, (examples,), 0, len(data[0]["vector"]))
        turns = jax.random.bernoulli(of_turn, 0.5, (3, examples))
        return turned({n: a[index] for n, a in data[0].items()}, turns)

    def held_out(key, data):
        index = jax.random.randint(key, (4 * examples,), 0, len(data[1]["vector"]))
        return {n: a[index] for n, a in data[1].items()}

    data = tuple({n: jnp.asarray(a) for n, a in side.items()} for side in (learn, stop))
    return Training(network(seed), draw, loss, data, held_out)


def turned(seen: dict, turns) -> dict:
    """Each pattern mirrored along y, along x, and its axes exchanged, where `turns` says so."""
    up, left, exchanged = turns
    out = {}
    for name, values in seen.items():
        if name == "vector":
            cos, sin = values[:, 8:10], values[:, 10:12]
            sin = jnp.stack(
                [jnp.where(t, -sin[:, i], sin[:, i]) for i, t in enumerate((up, left))], -1
            )
            both = [jnp.where(exchanged[:, None], a[:, ::-1], a) for a in (cos, sin)]
            out[name] = jnp.concatenate([values[:, :8], *both], axis=-1)
            continue
        values = jnp.where(up[:, None, None], values[:, ::-1], values)
        values = jnp.where(left[:, None, None], values[:, :, ::-1], values)
        out[name] = jnp.where(exchanged[:, None, None], values.swapaxes(1, 2), values)
    return out
