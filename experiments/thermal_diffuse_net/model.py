"""The thermal diffuse part of a pattern, out of what few runs of the physics say (ZSense, team 2).

What is known before any network (`foreknown`):

- the elastic pattern, without noise: one run through mean transmissions (`channelling`);
- each atom by itself, moving as Einstein has it (1907), scatters diffusely
  f(q)^2 (1 - exp(-4 pi^2 u^2 q^2)) (Hall and Hirsch 1965, eq. 3), seen under all angles of the
  aperture, as much of the beam as it feels;
- `FEW` configurations on a coarse grid, and what they depart from the mean wave.

A conditional U-Net makes a smooth diffuse pattern of the last two, and of the same at the other
places of the probe and thicknesses. The flux is kept: a power law says how much of the beam goes
beyond the detector (`beyond_law`), and what is neither there nor elastic is diffuse.
"""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
from channelling import coarser, coherent, departing, mean_wave
from crystals import Crystal, Settings
from flax import nnx
from jaxtyping import Array, Float
from patterns import ENERGY_KEV, PIXEL_MRAD, SEMIANGLE_MRAD, SIDE, factors, recorded

from micjax.nets.train import Training
from micjax.nets.unet import UNet
from micjax.physics.electrons.optics import wavelength_A
from micjax.physics.electrons.scattering import scattering_factors_A

SIZES = {"width": 24, "depth": 2, "blocks": 1, "fold": 2}
BEAM = 4096.0  # pixels: a pattern of ones is a whole beam
DIM = 1e-3  # of that mean: below it, logarithms stop
LEAST = 1e-4  # of the beam: that much is diffuse, and beyond the detector
LOSSES = {"diffuse": 1.0, "rings": 3.0}
RINGS = 32
SITES = ("A", "B", "X")
SAMPLES = 12  # configurations of each crystal, of which a training shows
FEW = 6  # at a time
SMOOTH = 1.5  # pixels, of the pattern to begin with
CHANNELS, CONDITIONS = 8, 19
OPTIONS = {"channels_in": CHANNELS, "channels_out": 1, **SIZES, "condition": CONDITIONS}


def einstein(
    elements, u_A2, edge_A: float
) -> tuple[Float[np.ndarray, "site ky kx"], Float[np.ndarray, "site"]]:
    """What an atom a cell scatters diffusely into each pixel, of a beam of 1 that is even over the
    cell, in units of the mean of a pattern that has a whole beam; and around the detector, of the
    beam."""
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
    inside = BEAM * pixel * spread[:, inner, inner]
    return inside, pixel * spread.sum((1, 2)) - inside.sum((1, 2)) / BEAM


def foreknown(settings: Settings, crystal: Crystal, key, samples: int = FEW) -> dict:
    """All that the network sees of a crystal; arrays [thickness, place, ...]."""
    ours = jax.tree.map(jnp.asarray, crystal)
    large, small = coarser(settings, 3), coarser(settings, 2)
    pattern, felt = coherent(large, ours, factors(large, crystal))
    elastic, felt = recorded(large, ours.edge_A, pattern), np.asarray(felt)
    f = factors(small, crystal)
    mean = mean_wave(small, ours, f)
    each = [
        [recorded(small, ours.edge_A, p)[""] for p in departing(small, ours, f, mean, k)]
        for k in jax.random.split(key, samples)
    ]
    departures, totals = (np.stack([np.asarray(p[k]) for p in each], 2) for k in (0, 1))

    single, around = einstein(crystal.elements, crystal.u_A2, float(crystal.edge_A))
    single, around = single * felt[..., None, None], (felt @ around)[..., None]
    alone = single.sum(2, keepdims=True)
    of_crystal = departures.sum((0, 1)) / alone.sum((0, 1)) * alone
    of_places = np.broadcast_to(departures.mean(1, keepdims=True), departures.shape)
    lost = 1.0 - totals.sum((-2, -1))
    shape = felt.shape[:2]
    thickness = np.asarray(crystal.cells * crystal.edge_A)[:, None, None] / 60.0
    vector = [
        np.broadcast_to(thickness, (*shape, 1)),
        np.full((*shape, 1), crystal.edge_A - 3.9),
        np.broadcast_to(crystal.elements / 50.0, (*shape, 3)),
        np.broadcast_to(crystal.u_A2 / 0.01, (*shape, 3)),
        0.3 * np.log(felt),
        0.3 * np.log(around + LEAST),
        0.3 * np.log(np.broadcast_to(around.mean(1, keepdims=True), around.shape) + LEAST),
        0.3 * np.log(np.asarray(elastic["_beyond"])[..., None] + LEAST),
    ]
    known = {
        "elastic": BEAM * np.asarray(elastic[""]),
        "single": single,
        "samples": BEAM * departures,
        "samples_places": BEAM * of_places,
        "samples_crystal": BEAM * of_crystal,
        "samples_lost": lost,
        "samples_lost_places": np.broadcast_to(lost.mean(1, keepdims=True), lost.shape),
        "vector": np.concatenate(vector, -1),
    }
    return {n: a.astype(np.float32) for n, a in known.items()}


def told(data: h5py.File, which: np.ndarray, samples: int = FEW) -> dict[str, np.ndarray]:
    """What is known of each pattern of the crystals `which`, and what was simulated: `total`, and
    `diffuse` without the bias of so many configurations."""
    settings = Settings(**json.loads(data.attrs["settings"]))
    count, rows = settings.configurations, []
    for i in np.flatnonzero(which):
        crystal = Crystal(**{n: data[n][i] for n in Crystal._fields})
        # other configurations than those of the file
        key = jax.random.fold_in(jax.random.key(settings.seed + 1), int(i))
        known = foreknown(settings, crystal, key, samples)
        total, biased, damped = (BEAM * data[n][i] for n in ("total", "elastic", "damped"))
        known |= {"total": total, "diffuse": (total - biased) * (count / (count - 1))}
        known |= {"damped": damped}
        rows.append({n: a.reshape(-1, *a.shape[2:]) for n, a in known.items()})
    return {n: np.concatenate([row[n] for row in rows]) for n in rows[0]}


def network(seed: int) -> UNet:
    return UNet(**OPTIONS, rngs=nnx.Rngs(seed))


def smoothed(pattern: Float[Array, "n ky kx"]) -> Float[Array, "n ky kx"]:
    """By a Gaussian, which ends at the edges."""
    away = np.arange(SIDE)[:, None] - np.arange(SIDE)
    blur = np.exp(-0.5 * (away / SMOOTH) ** 2)
    blur = (blur / blur.sum(1, keepdims=True)).astype(np.float32)
    return jnp.einsum("iy,nyx,jx->nij", blur, pattern, blur)


def conditions(seen: dict) -> Float[Array, "n d"]:
    """All that is one number of a pattern; shares of the beam as logarithms."""
    few = {n: seen[n][:, :FEW].mean(1) for n in seen if n.startswith("samples")}
    shares = [
        few["samples_lost"],
        few["samples_lost_places"],
        few["samples"].mean((1, 2)),
        1.0 - seen["elastic"].sum((1, 2)) / BEAM,
        seen["single"].sum(1).mean((1, 2)),
    ]
    shares = jnp.log(jnp.maximum(jnp.stack(shares, 1), 0.0) + LEAST)
    return jnp.concatenate([seen["vector"], 0.3 * shares], 1)


def beyond_law(learn: dict) -> Float[np.ndarray, "d"]:
    """The power law of the share of the beam that leaves the detector, and its constant: least
    absolute deviations, by least squares that are weighted anew."""
    rows, share = [], 1.0 - learn["total"].sum((1, 2)) / BEAM
    for i in range(0, SAMPLES, FEW):
        some = {n: a[:, i:] if n.startswith("samples") else a for n, a in learn.items()}
        rows.append(np.asarray(conditions(some), float))
    rows, share = np.concatenate(rows), np.tile(share.astype(float), len(rows))
    rows, weight = np.pad(rows, ((0, 0), (0, 1)), constant_values=1.0), share
    for _ in range(6):
        law = np.linalg.lstsq(rows * weight[:, None], np.log(share) * weight, rcond=None)[0]
        weight = share / np.sqrt(np.abs(np.exp(rows @ law) - share) + 1e-3)
    return law


def parts(
    network: UNet, law: Float[Array, "d"], seen: dict
) -> tuple[Float[Array, "n ky kx"], Float[Array, "n ky kx"]]:
    """The elastic and the diffuse pattern."""
    elastic, vector = seen["elastic"], conditions(seen)
    few, places, crystal = (
        seen[n][:, :FEW].mean(1) + DIM for n in ("samples", "samples_places", "samples_crystal")
    )
    begun = smoothed(few)
    ratios = [few, places, crystal, *(jnp.moveaxis(seen["single"], 1, 0) + DIM)]
    inputs = [0.3 * jnp.log(elastic + DIM), 0.3 * jnp.log(begun)]
    inputs += [jnp.log(p / begun) for p in ratios]
    diffuse = begun * jnp.exp(network(jnp.stack(inputs, axis=-1), vector)[..., 0])
    inside = 1.0 - elastic.sum((1, 2)) / BEAM - jnp.exp(vector @ law[:-1] + law[-1])
    flux = jnp.maximum(inside, LEAST) / diffuse.mean((1, 2))
    return elastic, diffuse * flux[:, None, None]


def rings(pattern: Float[Array, "n ky kx"]) -> Float[Array, "n r"]:
    """Sums over rings, a pixel wide."""
    r = np.arange(pattern.shape[-1]) - (pattern.shape[-1] - 1) / 2
    ring = np.minimum(np.hypot(r[:, None], r).astype(int), RINGS)
    return pattern.reshape(len(pattern), -1) @ jnp.asarray(
        (ring.ravel()[:, None] == np.arange(RINGS)).astype(np.float32)
    )


def loss(network: UNet, law: Float[Array, "d"], seen: dict) -> Float[Array, ""]:
    """Of the diffuse part the likelihood of a mean of intensities (gamma), which counts twice where
    it is bright; of all rings what they are off by, relatively."""
    elastic, diffuse = parts(network, law, seen)
    total = elastic + diffuse
    bright = jax.lax.stop_gradient(diffuse / diffuse.mean((1, 2), keepdims=True))
    gamma = (0.5 + 0.5 * bright) * (seen["diffuse"] / diffuse + jnp.log(diffuse))
    of_rings = jnp.abs(rings(total) / rings(seen["total"]) - 1.0)
    told = {"diffuse": gamma, "rings": of_rings}
    return sum(weight * told[name].mean() for name, weight in LOSSES.items())


def training(
    learn: dict, stop: dict, law: Float[np.ndarray, "d"], examples: int = 16, seed: int = 0
) -> Training:
    """Patterns that were simulated, with other configurations each time, mirrored and turned at
    random: a crystal that is mirrored is another crystal of the same law."""

    def draw(key, data):
        bits = jax.random.bits(key, (examples, 4 + SAMPLES))
        index = bits[:, 0] % len(data[0]["vector"])
        seen = {n: a[index] for n, a in data[0].items()}
        chosen = jnp.argsort(bits[:, 4:], axis=1)[:, :FEW]
        for name in (n for n in seen if n.startswith("samples")):
            where = chosen.reshape(*chosen.shape, *[1] * (seen[name].ndim - 2))
            seen[name] = jnp.take_along_axis(seen[name], where, 1)
        return turned(seen, bits[:, 1:4].T % 2 == 0)

    def held_out(key, data):
        index = jax.random.bits(key, (4 * examples,)) % len(data[1]["vector"])
        return {n: a[index] for n, a in data[1].items()}

    data = tuple({n: jnp.asarray(a) for n, a in side.items()} for side in (learn, stop))
    law = jnp.asarray(law, jnp.float32)
    return Training(network(seed), draw, lambda n, seen: loss(n, law, seen), data, held_out)


def turned(seen: dict, turns) -> dict:
    """Each pattern mirrored along y, along x, and its axes exchanged, where `turns` says so."""
    up, left, exchanged = turns
    out = {}
    for name, values in seen.items():
        if values.ndim < 3:
            out[name] = values
            continue
        where = (slice(None), *[None] * (values.ndim - 1))
        values = jnp.where(up[where], values[..., ::-1, :], values)
        values = jnp.where(left[where], values[..., ::-1], values)
        out[name] = jnp.where(exchanged[where], values.swapaxes(-1, -2), values)
    return out
