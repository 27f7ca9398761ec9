"""The problem of `micjax.problems.eels` and its made-up example."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem
from micjax.core.ranges import not_negative, positive
from micjax.inference.maps.each import each_pixel
from micjax.io import read
from micjax.physics.noise import HeteroscedasticGaussian, Poisson
from micjax.physics.spectra.atomic import atomic_number, edge_energies_eV, edge_energy_eV
from micjax.physics.spectra.backgrounds import PowerLaw
from micjax.physics.spectra.composed import SumOf
from micjax.physics.spectra.edges import (
    LINE_SHAPES,
    LineShape,
    cross_section_barn_per_eV,
    effective_semiangle_mrad,
)
from micjax.physics.spectra.scales import Priors, spread_over
from micjax.problems.eels.model import CoreLoss, FineEdge, LEdge
from micjax.problems.shared.spectrum_images import in_unit, spectrum_image

Energies = Float[Array, " n"]
Spectra = Float[Array, "ny nx n"]

ELECTRONVOLTS = {"eV": 1.0, "keV": 1e3}
WHITE = range(20, 29)  # calcium to nickel: L edges with white lines, into empty d states
FINE = 8  # Gaussians of the fine structure of the others
SPACING_EV = 5.0
ONSET_SD_EV = 3.0  # of an edge about its place in the table, by the bonds and the calibration
BEFORE_EV = 30.0  # of background that an edge needs


def problem(
    ny: int = 6,
    nx: int = 8,
    edges: Sequence[str] = ("O_K", "Mn_L"),
    low_eV: float = 450.0,
    high_eV: float = 720.0,
    channels: int = 271,
    energy_keV: float = 200.0,
    convergence_mrad: float = 20.0,
    collection_mrad: float = 30.0,
    resolution_eV: float = 1.0,
    onset_sd_eV: float | None = None,
    fine_structure: int = FINE,
    white_lines: LineShape = "gaussian",
    noise: Literal["poisson", "scaled"] = "poisson",
    gain: float = 1.0,
    level: float = 3000.0,
    low_loss: str | None = None,
    exposure_ratio: float = 1.0,
    pixel_nm: float | Sequence[float] | None = None,
) -> InverseProblem:
    """Edges and a power law at every pixel.

    **Arguments:**

    - `ny`, `nx`: pixels.
    - `edges`: `O_K`, `Mn_L`; hydrogenic cross-sections, white lines on L edges from Ca to Ni.
    - `low_eV`, `high_eV`: first and last of the `channels`.
    - `energy_keV`: of the beam.
    - `convergence_mrad`, `collection_mrad`: semiangles of the probe and of the spectrometer.
    - `resolution_eV`: full width at half maximum.
    - `onset_sd_eV`: how far edges may be from the table, one standard deviation; 0 holds them
        there. 3 eV, and 0 where a channel is wider than that.
    - `fine_structure`: so many Gaussians on each edge without white lines; 0 for none.
    - `white_lines`: `gaussian` or `lorentzian`.
    - `noise`: `poisson` for counts, or `scaled`: of variance `gain` times the mean.
    - `gain`: units of the data per count.
    - `level`: about the largest value.
    - `low_loss`: a file with the low loss of each pixel, or one for all: plural scattering.
    - `exposure_ratio`: how long the edges were exposed over how long the low loss was.
    - `pixel_nm`: edge of a pixel, or (dy, dx), if it is known.

    **Raises:** `ValueError` for another noise, edges that are not in the table, not on the axis or
    without 30 eV before the first, a low loss of another shape or channel, and numbers that are
    not positive.
    """
    positive(level=level, gain=gain, resolution_eV=resolution_eV, low_eV=low_eV)
    positive(exposure_ratio=exposure_ratio)
    if not high_eV > low_eV:
        raise ValueError(f"from {low_eV} to {high_eV} eV: no axis")
    if noise not in ("poisson", "scaled"):
        raise ValueError(f"noise = {noise!r}: one of poisson, scaled is needed")
    if white_lines not in LINE_SHAPES:
        raise ValueError(
            f"white_lines = {white_lines!r}: one of {', '.join(LINE_SHAPES)} is needed"
        )
    if not edges or len(set(edges)) != len(edges):
        raise ValueError(f"edges {list(edges)}: one or more, each once, are needed")
    axis = np.linspace(low_eV, high_eV, channels)
    step = float(axis[1] - axis[0])
    onset_sd = onset_sd_of(step) if onset_sd_eV is None else onset_sd_eV
    not_negative(onset_sd_eV=onset_sd, fine_structure=fine_structure)
    onsets = {name: onset_of(name) for name in edges}
    for name, onset in onsets.items():
        if not low_eV < onset < high_eV:
            raise ValueError(f"{name} is at {onset:.4g} eV: not from {low_eV} to {high_eV} eV")
    first = min(onsets.values())
    if first - low_eV < BEFORE_EV:
        raise ValueError(
            f"{first - low_eV:.3g} eV before the first edge, at {first:.4g} eV: the background "
            f"needs {BEFORE_EV:.0f}"
        )
    parts: dict[str, Any] = {}
    priors: Priors = {
        "forward.background.level": dist.HalfNormal(2.0 * level),
        "forward.background.exponent": dist.Normal(3.0, 2.0),
    }
    for name, onset in onsets.items():
        angle = effective_semiangle_mrad(onset, energy_keV, convergence_mrad, collection_mrad)
        symbol, _, kind = name.partition("_")
        sigma = cross_section_barn_per_eV(
            symbol, "K" if kind == "K" else "L3", axis, energy_keV, angle
        )
        amount = level / float(np.max(np.asarray(sigma)[axis >= onset]))
        of = f"forward.edges.{name}"
        priors[f"{of}.amount"] = dist.HalfNormal(2.0 * amount)
        if onset_sd > 0:
            priors[f"{of}.onset_eV"] = dist.Normal(onset, onset_sd)
        if kind == "K" or atomic_number(symbol) not in WHITE:
            fine, spacing = np.zeros(fine_structure), max(SPACING_EV, step)
            parts[name] = FineEdge(0.1 * amount, onset, fine, resolution_eV, spacing, sigma)
            if fine_structure:
                prior = dist.Normal(0.0, 1.0).expand((fine_structure,)).to_event(1)
                priors[f"{of}.fine"] = prior
            continue
        splitting = edge_energy_eV(symbol, "L2") - onset
        lines = (splitting, 2.0 / 3.0, 3.0, 3.5)
        parts[name] = LEdge(0.1 * amount, 0.2 * level, onset, *lines, sigma, white_lines)
        priors |= {
            f"{of}.height": dist.HalfNormal(2.0 * level),
            f"{of}.splitting_eV": dist.LogNormal(np.log(splitting), 0.1),
            f"{of}.branching_ratio": dist.Beta(4.0, 2.0),
            f"{of}.fwhm_eV": spread_over(max(0.5, resolution_eV), 8.0),
            f"{of}.fwhm_l2_eV": spread_over(max(0.5, resolution_eV), 8.0),
        }
    reference = float(np.sqrt(low_eV * first))
    background = PowerLaw(0.5 * level, 3.0, reference)
    known: dict[str, Any] = {}
    zero, spectrum = 0, np.zeros(0)
    if low_loss is not None:
        cube, zero = low_losses(low_loss, (ny, nx), step)
        known, spectrum = {"forward.low_loss": cube}, cube[0, 0]
    model = CoreLoss(background, SumOf(parts), spectrum, zero, exposure_ratio)
    law: Any = Poisson(1.0) if noise == "poisson" else HeteroscedasticGaussian(0.0, gain)
    pixel = InverseProblem(model, law, priors)
    return each_pixel(pixel, (ny, nx), pixel_nm, ("energy loss", "eV"), known)


def onset_sd_of(step_eV: float) -> float:
    """How well the place of an edge is known; with wider channels it is no question."""
    return ONSET_SD_EV if step_eV <= ONSET_SD_EV else 0.0


def onset_of(name: str) -> float:
    """Of an edge such as `O_K`, `Mn_L` (that of L3). **Raises:** `ValueError` for no such edge."""
    symbol, _, kind = name.partition("_")
    if kind not in ("K", "L"):
        there = ", ".join(edge_energies_eV(symbol)) if symbol else ""
        raise ValueError(f"{name!r} is no edge that can be fitted: O_K, Mn_L are some ({there})")
    return edge_energy_eV(symbol, "K" if kind == "K" else "L3")


def low_losses(file: str, shape: tuple[int, int], step_eV: float) -> tuple[np.ndarray, int]:
    """Of each pixel `[ny, nx, m]` from a channel before the zero loss on; where that is.

    **Raises:** `ValueError` for another map or another width of channels.
    """
    image = spectrum_image(read(file))
    energy = in_unit(image.axis, ELECTRONVOLTS, "the axis of the low loss")
    own = float(np.median(np.diff(energy)))
    if abs(own / step_eV - 1.0) > 0.01:
        raise ValueError(f"{file}: channels of {own:.4g} eV, those of the edges {step_eV:.4g} eV")
    if image.y.shape[:2] not in (shape, (1, 1)):
        raise ValueError(f"{file}: low loss of {image.y.shape[:2]} pixels, the map has {shape}")
    cube = np.maximum(np.nan_to_num(image.y), 0.0)
    if not (cube.sum(axis=-1) > 0).all():
        raise ValueError(f"{file}: pixels without any low loss")
    zero = int(np.argmax(cube.sum(axis=(0, 1))))
    # each at its own zero, that a drift of the spectrometer does not widen all
    own_zero = cube.argmax(axis=-1)
    shifts = zero - own_zero
    if np.abs(shifts).max() > 0:
        rows = np.arange(cube.shape[-1]) - shifts[..., None]
        cube = np.take_along_axis(cube, np.clip(rows, 0, cube.shape[-1] - 1), axis=-1)
    return np.broadcast_to(cube, (*shape, cube.shape[-1])), zero


def example(
    key, ny: int = 6, nx: int = 8, counts: float = 3000.0
) -> tuple[InverseProblem, Energies, Spectra]:
    """A manganite with a layer in which Mn is reduced: its white lines move and change ratio."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    truth = problem(ny, nx, level=counts, pixel_nm=0.4)
    reduced = 1.0 / (1.0 + np.exp((np.abs(np.indices((ny, nx))[1] / nx - 0.6) - 0.15) / 0.03))
    own = truth.values()
    amount = np.asarray(own["forward.pixel.edges.Mn_L.amount"])
    oxygen = np.asarray(own["forward.pixel.edges.O_K.amount"])
    fine = np.array([1.2, 0.2, 0.6, 0.3, -0.1, 0.1, 0.0, 0.0])
    values = {
        "background.level": 0.6 * counts * (1.0 + 0.05 * rng.normal(size=(ny, nx))),
        "background.exponent": 2.9 + 0.05 * rng.normal(size=(ny, nx)),
        "edges.O_K.amount": 0.9 * oxygen * (1.0 - 0.1 * reduced),
        "edges.O_K.onset_eV": 531.0 + 0.1 * rng.normal(size=(ny, nx)),
        "edges.O_K.fine": np.broadcast_to(fine, (ny, nx, FINE)),
        "edges.Mn_L.amount": 0.8 * amount,
        "edges.Mn_L.height": 0.3 * counts * (1.0 + 0.2 * reduced),
        "edges.Mn_L.onset_eV": 642.0 - 1.2 * reduced,
        "edges.Mn_L.branching_ratio": 0.68 + 0.07 * reduced,
    }
    truth = truth.at({f"forward.pixel.{n}": v for n, v in values.items()})
    energy = jnp.linspace(450.0, 720.0, 271)
    drawn = truth.noise(truth.forward(energy)).sample(key)
    return truth, energy, jnp.asarray(drawn, float)
