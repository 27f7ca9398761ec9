"""The thermal diffuse part of a pattern, out of what one run of the physics says (ZSense, team 2).

Two things are computed before any network. One run through atoms whose potentials are blurred by
their motion (Debye-Waller) gives the elastic pattern but for the beam that thermal motion takes out
of it. And each atom by itself, moving as Einstein has it (1907), scatters diffusely

    f(q)^2 (1 - exp(-4 pi^2 u^2 q^2))

(Hall and Hirsch 1965, eq. 3), seen under all angles of the aperture, as much of the beam as it
feels (`channelling`). A conditional U-Net says, pixel by pixel, how much is left of the first and
how much of the second there is: two positive factors on two positive patterns. What leaves the
elastic pattern and does not appear in the diffuse one was scattered beyond the detector.
"""

import itertools
import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
from channelling import felt
from crystals import Crystal, Settings
from flax import nnx
from jaxtyping import Array, Float
from patterns import ENERGY_KEV, PIXEL_MRAD, SEMIANGLE_MRAD, SIDE, factors, moving, recorded

from micjax.nets.train import Training
from micjax.nets.unet import UNet
from micjax.physics.electrons.optics import wavelength_A
from micjax.physics.electrons.scattering import scattering_factors_A

SIZES = {"width": 32, "depth": 3, "blocks": 1, "fold": 2}
BEAM = 4096.0  # pixels: a pattern of ones is a whole beam
DIM = 1e-3  # of that mean: below it, logarithms stop
LOSSES = {"diffuse": 1.0, "elastic": 1.0, "flux": 30.0, "rings": 3.0}
RINGS = 32
SITES = ("A", "B", "X")
SAMPLES = 4  # configurations of each crystal, of which a training shows
FEW = 2  # at a time
CONDITIONS = 15


def einstein(elements, u_A2, edge_A: float) -> Float[np.ndarray, "site ky kx"]:
    """What an atom a cell scatters diffusely into each pixel, of a beam of 1 that is even over the
    cell; in units of the mean of a pattern that has a whole beam."""
    half = np.arange(-(SIDE - 1), SIDE + 1) - 0.5  # as fine as the detector, and twice as wide
    mrad = PIXEL_MRAD * np.hypot(half[:, None], half)
    wavelength = float(wavelength_A(ENERGY_KEV))
    q2 = (1e-3 * mrad / wavelength) ** 2
    heavier = 1.0 + ENERGY_KEV / 510.999  # electrons in motion than at rest
    factors = heavier * np.asarray(
        scattering_factors_A(tuple(int(z) for z in elements), jnp.asarray(q2)), float
    )
    pixel = (1e-3 * PIXEL_MRAD / wavelength) ** 2 * wavelength**2 / edge_A**2
    away = 1.0 - np.exp(-4.0 * np.pi**2 * np.asarray(u_A2)[:, None, None] * q2)
    offsets = np.arange(-16, 17)
    seen_under = np.hypot(offsets[:, None], offsets) * PIXEL_MRAD <= SEMIANGLE_MRAD
    seen_under = seen_under[None] / seen_under.sum()
    spread = scipy.signal.fftconvolve(factors**2 * away, seen_under, "same", axes=(1, 2))
    inner = slice(SIDE // 2, SIDE // 2 + SIDE)
    return BEAM * pixel * spread[:, inner, inner]


def told(data: h5py.File, which: np.ndarray) -> dict[str, np.ndarray]:
    """Of each pattern of the crystals `which`: `damped`, `static` and the Z map, what each site
    scatters by itself, conditions, and the two parts of what was simulated, without the bias of so
    many configurations."""
    count = json.loads(data.attrs["settings"])["configurations"]

    def of(name):
        return data[name][: len(which)][which]

    def images(name):
        values = of(name).astype(np.float32)
        return values.reshape(-1, *values.shape[-2:])

    total, elastic = BEAM * images("total"), BEAM * images("elastic")
    diffuse = (total - elastic) * (count / (count - 1))
    places, edge = of("place_A"), of("edge_A")
    shape = (*of("cells").shape, places.shape[1])
    z_map = np.broadcast_to(of("z_map")[:, None], (*shape, SIDE, SIDE))
    feels = felt_by(data, which)  # [crystal, thickness, place, site]
    single = np.stack([einstein(*a) for a in zip(of("elements"), of("u_A2"), edge, strict=True)])
    single = single[:, None, None] * feels[..., None, None]
    edge = edge[:, None, None]
    phase = 2.0 * np.pi * places[:, None] / edge[..., None]
    thickness = np.broadcast_to(of("thickness_A")[..., None] / 60.0, shape)
    vector = [
        thickness[..., None],
        np.broadcast_to(edge - 3.9, shape)[..., None],
        *(np.broadcast_to(c[:, None, None], (*shape, 3)) for c in (of("elements") / 50.0,)),
        *(np.broadcast_to(c[:, None, None], (*shape, 3)) for c in (of("u_A2") / 0.01,)),
        *(np.broadcast_to(f(phase), (*shape, 2)) for f in (np.cos, np.sin)),
        0.3 * np.log(feels),
    ]
    samples = BEAM * sampled(data, which)  # [crystal, sample, thickness, place, ky, kx]
    return {
        "samples": np.moveaxis(samples, 1, 3).reshape(-1, samples.shape[1], SIDE, SIDE),
        "damped": BEAM * images("damped"),
        "static": BEAM * images("static"),
        "z_map": z_map.reshape(-1, SIDE, SIDE).astype(np.float32) / 50.0,
        "single": single.reshape(-1, len(SITES), SIDE, SIDE).astype(np.float32),
        "vector": np.concatenate(vector, -1).reshape(-1, CONDITIONS).astype(np.float32),
        "elastic": total - diffuse,
        "diffuse": diffuse,
    }


def sampled(data: h5py.File, which: np.ndarray) -> Float[np.ndarray, "crystal sample *pattern"]:
    """Patterns of single configurations of each crystal, others than those of the file."""
    settings = Settings(**json.loads(data.attrs["settings"]))
    rows = []
    for i in np.flatnonzero(which):
        crystal = Crystal(**{n: data[n][i] for n in Crystal._fields})
        ours, f = jax.tree.map(jnp.asarray, crystal), factors(settings, crystal)
        key = jax.random.fold_in(jax.random.key(settings.seed + 1), int(i))
        patterns = [moving(settings, ours, f, key, k, k + 1)[1] for k in range(SAMPLES)]
        seen = [np.asarray(recorded(settings, ours.edge_A, p)[""]) for p in patterns]
        rows.append(np.stack(seen).astype(np.float32))
    return np.stack(rows)


def felt_by(
    data: h5py.File, which: np.ndarray
) -> Float[np.ndarray, "crystal thickness place site"]:
    """One run of the physics for each crystal."""
    settings = Settings(**json.loads(data.attrs["settings"]))
    rows = []
    for i in np.flatnonzero(which):
        names = Crystal._fields
        crystal = Crystal(**{n: data[n][i] for n in names})
        ours = jax.tree.map(jnp.asarray, crystal)
        rows.append(np.asarray(felt(settings, ours, factors(settings, crystal))))
    return np.stack(rows)


def network(seed: int) -> UNet:
    return UNet(4 + len(SITES), 2, **SIZES, condition=CONDITIONS, rngs=nnx.Rngs(seed))


def parts(network: UNet, seen: dict) -> tuple[Float[Array, "n ky kx"], Float[Array, "n ky kx"]]:
    """The elastic and the diffuse pattern."""
    damped, single = seen["damped"], seen["single"]
    begun = single.sum(axis=1) + DIM
    few = seen["samples"][:, :FEW].mean(axis=1)
    patterns = [damped, seen["static"], few, *jnp.moveaxis(single, 1, 0)]
    inputs = [0.3 * jnp.log(p + DIM) for p in patterns]
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
    """Of the diffuse part the likelihood of a mean of intensities (gamma), which counts twice where
    it is bright; of the elastic part, of all rings and of the whole what they are off by,
    relatively."""
    elastic, diffuse = parts(network, seen)
    total, wanted = elastic + diffuse, seen["elastic"] + seen["diffuse"]
    bright = jax.lax.stop_gradient(diffuse / diffuse.mean((1, 2), keepdims=True))
    gamma = (0.5 + 0.5 * bright) * (seen["diffuse"] / diffuse + jnp.log(diffuse))
    off = jnp.abs(elastic - seen["elastic"]).sum((1, 2)) / seen["elastic"].sum((1, 2))
    flux = jnp.abs(total.sum((1, 2)) / wanted.sum((1, 2)) - 1.0)
    of_rings = jnp.abs(rings(total) / rings(wanted) - 1.0)
    told = {"diffuse": gamma, "elastic": off, "flux": flux, "rings": of_rings}
    return sum(weight * told[name].mean() for name, weight in LOSSES.items())


def training(learn: dict, stop: dict, examples: int = 16, seed: int = 0) -> Training:
    """Patterns that were simulated, mirrored and turned at random: a crystal that is mirrored is
    another crystal of the same law, with its probe elsewhere."""

    def draw(key, data):
        numbers = jax.random.bits(key, (5, examples))
        index = numbers[0] % len(data[0]["vector"])
        seen = {n: a[index] for n, a in data[0].items()}
        pair = jnp.asarray(list(itertools.combinations(range(SAMPLES), FEW)))
        pair = pair[numbers[1] % len(pair)]
        seen["samples"] = jnp.take_along_axis(seen["samples"], pair[:, :, None, None], 1)
        return turned(seen, numbers[2:] % 2 == 0)

    def held_out(key, data):
        index = jax.random.bits(key, (4 * examples,)) % len(data[1]["vector"])
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
            out[name] = jnp.concatenate([values[:, :8], *both, values[:, 12:]], axis=-1)
            continue
        where = (slice(None), *[None] * (values.ndim - 1))
        values = jnp.where(up[where], values[..., ::-1, :], values)
        values = jnp.where(left[where], values[..., ::-1], values)
        out[name] = jnp.where(exchanged[where], values.swapaxes(-1, -2), values)
    return out
