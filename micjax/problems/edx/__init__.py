"""X-ray line intensities at every pixel of a map, with the errors of counting.

    counts(E) ~ Poisson(sum of families of lines + bremsstrahlung)

Each pixel has counts of its own of each family, such as `Fe_K`, and of bremsstrahlung. Calibration
and resolution of the detector are those of the whole map: they are fitted to the sum of all spectra
when a file is read.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, parameter
from micjax.core.ranges import positive
from micjax.inference.maps.each import each_pixel, one_pixel
from micjax.inference.maps.stage import fit_each_pixel
from micjax.inference.solution import Solution
from micjax.io import read
from micjax.physics.noise import Poisson
from micjax.physics.spectra.atomic import atomic_mass_u, x_ray_lines
from micjax.physics.spectra.composed import KnownShape, SumOf
from micjax.physics.spectra.x_ray import XRaySpectrum, cliff_lorimer
from micjax.problems.edx.calibration import calibration
from micjax.problems.shared.map_conclusion import compare_map, conclude_map
from micjax.problems.shared.map_show import map_figures
from micjax.problems.shared.spectrum_images import (
    are_counts,
    even_axis,
    in_unit,
    spectrum_image,
)
from micjax.problems.shared.stress import stress as stress

log = logging.getLogger("micjax")

Energies = Float[Array, " n"]
Spectra = Float[Array, "ny nx n"]

KILOVOLTS = {"keV": 1.0, "eV": 1e-3}
LEAST_KEV = 0.1  # the table of lines begins there


class Family(KnownShape):
    """Counts of a family of lines, or of bremsstrahlung, of a known shape.

    - `k_factor`: weight of its element per count, over that of another; 0 where it is not known.
    """

    k_factor: Float[Array, ""] = parameter(default=0.0)


def problem(
    ny: int = 12,
    nx: int = 12,
    families: Sequence[str] = ("O_K", "Ti_K", "Sr_L"),
    low_keV: float = 0.3,
    high_keV: float = 6.0,
    channels: int = 571,
    beam_keV: float = 200.0,
    offset_keV: float = 0.0,
    gain_error: float = 0.0,
    noise_keV: float = 0.051,
    cutoff_keV: float = 0.3,
    counts_per_pixel: float = 300.0,
    k_factors: Mapping[str, float] | None = None,
    pixel_nm: float | Sequence[float] | None = None,
) -> InverseProblem:
    """Counts of each family and of bremsstrahlung at every pixel.

    **Arguments:**

    - `ny`, `nx`: pixels.
    - `families`: of lines: `Fe_K`, `U_M`.
    - `low_keV`, `high_keV`: first and last of the `channels`.
    - `beam_keV`: energy of the electrons, at which bremsstrahlung ends.
    - `offset_keV`, `gain_error`: energies are measured as (1 + gain_error) E + offset.
    - `noise_keV`: full width at half maximum of the electronics.
    - `cutoff_keV`: of the window of the detector.
    - `counts_per_pixel`: about.
    - `k_factors`: Cliff-Lorimer factors of two elements or more, for weight and atomic percent:
        `{Fe_Ka: 1.21, O_Ka: 1.9}`, of alpha lines or, as `Fe_K`, of all lines of a family.
    - `pixel_nm`: edge of a pixel, or (dy, dx), if it is known.

    **Raises:** `ValueError` for families that are not in the table or not on the axis, one that is
    named twice, k-factors of other families or twice of an element, and numbers that are not
    positive.
    """
    positive(counts_per_pixel=counts_per_pixel, noise_keV=noise_keV, low_keV=low_keV)
    if not high_keV > low_keV:
        raise ValueError(f"from {low_keV} to {high_keV} keV: no axis")
    if not families or len(set(families)) != len(families):
        raise ValueError(f"families {list(families)}: one or more, each once, are needed")
    for name in families:
        _check_family(name, low_keV, high_keV)
    detector = XRaySpectrum.of(
        families,
        beam_keV,
        noise_keV=noise_keV,
        offset_keV=offset_keV,
        gain_error=gain_error,
        cutoff_keV=cutoff_keV,
    )
    energy = jnp.linspace(low_keV, high_keV, channels)
    names = [*families, "bremsstrahlung"]
    some = counts_per_pixel / len(names)
    shapes = np.asarray(detector.shapes(energy))
    factors = _k_factors(k_factors or {}, families)
    model = SumOf(
        {n: Family(some, s, factors.get(n, 0.0)) for n, s in zip(names, shapes, strict=True)}
    )
    prior = dist.HalfNormal(3.0 * counts_per_pixel)
    pixel = InverseProblem(model, Poisson(1.0), {f"forward.{n}.counts": prior for n in names})
    return each_pixel(pixel, (ny, nx), pixel_nm, ("energy", "keV"))


def _k_factors(given: Mapping[str, float], families: Sequence[str]) -> dict[str, float]:
    """By family, for all of its lines.

    **Raises:** `ValueError`, see `problem`.
    """
    out: dict[str, float] = {}
    for name, k in given.items():
        family = name.removesuffix("a") if name.endswith(("_Ka", "_La", "_Ma")) else name
        if family not in families:
            raise ValueError(
                f"k_factors: {name} is of none of the families {', '.join(families)}; Fe_Ka and "
                "Fe_K are the ways to write it"
            )
        symbol, _, kind = family.partition("_")
        if twice := [n for n in out if n.startswith(f"{symbol}_")]:
            raise ValueError(f"k_factors: {name} and {twice[0]}: one for an element is needed")
        positive(**{f"k_factors.{name}": k})
        lines = [line for line in x_ray_lines(symbol) if line.family == kind]
        alpha = sum(line.share for line in lines if line.name.startswith(f"{kind}a"))
        out[family] = k if family == name else k * alpha / sum(line.share for line in lines)
    if len(out) == 1:
        raise ValueError(f"k_factors of {next(iter(out))} alone: two elements or more are needed")
    return out


def quantified(model: SumOf) -> dict[str, "Family"]:
    """By element the family that has a k-factor."""
    return {n.partition("_")[0]: p for n, p in model.parts.items() if float(p.k_factor) > 0}


def composition(model: SumOf) -> dict[str, Array]:
    """Weight and atomic percent of the elements that have a k-factor, of all of these."""
    there = quantified(model)
    if not there:
        return {}
    counts = jnp.stack([part.counts for part in there.values()])
    weight = cliff_lorimer(counts, jnp.stack([part.k_factor for part in there.values()]))
    moles = weight / jnp.array([atomic_mass_u(symbol) for symbol in there])
    percent = {"atomic_percent": moles / jnp.sum(moles), "weight_percent": weight}
    return {
        f"{s}.{n}": 100.0 * c
        for n, all_c in percent.items()
        for s, c in zip(there, all_c, strict=True)
    }


def _check_family(name: str, low_keV: float, high_keV: float) -> None:
    """**Raises:** `ValueError` for one without a strong line on the axis."""
    symbol, _, family = name.partition("_")
    there = [line for line in x_ray_lines(symbol) if line.family == family]
    if not there:
        raise ValueError(f"{name!r} is no family of lines: Fe_K, Fe_L, U_M are some")
    if not _on_axis(symbol, family, low_keV, high_keV):
        strongest = max(there, key=lambda line: line.share)
        raise ValueError(
            f"{name}: its strongest line, at {strongest.energy_keV:.3g} keV, is not between "
            f"{low_keV:.4g} and {high_keV:.4g} keV"
        )


def _on_axis(symbol: str, family: str, low_keV: float, high_keV: float) -> bool:
    lines = [line for line in x_ray_lines(symbol) if line.family == family]
    strongest = max(lines, key=lambda line: line.share)
    return low_keV < strongest.energy_keV < high_keV


def families_of(elements: Sequence[str], low_keV: float, high_keV: float) -> list[str]:
    """All families of these elements whose strongest line is on the axis.

    **Raises:** `ValueError` for an element that is not in the table, and where there is none.
    """
    families, lost = [], []
    for symbol in elements:
        names = dict.fromkeys(line.family for line in x_ray_lines(symbol))
        there = [f"{symbol}_{f}" for f in names if _on_axis(symbol, f, low_keV, high_keV)]
        families += there
        lost += [] if there else [symbol]
    if lost:
        log.warning(
            "%s: no strong line from %.3g to %.4g keV, left out", ", ".join(lost), low_keV, high_keV
        )
    if not families:
        raise ValueError(
            f"elements {', '.join(elements)}: none has a strong line from {low_keV:.3g} to "
            f"{high_keV:.4g} keV"
        )
    return families


def example(
    key, ny: int = 12, nx: int = 12, counts_per_pixel: float = 300.0
) -> tuple[InverseProblem, Energies, Spectra]:
    """Strontium titanate beside a titanium oxide, a few hundred counts a pixel."""
    truth = problem(ny, nx, counts_per_pixel=counts_per_pixel, pixel_nm=1.5)
    y, x = np.indices((ny, nx)) / max(ny, nx)
    perovskite = 1.0 / (1.0 + np.exp((x - 0.6 + 0.2 * y) / 0.05))
    values = {
        "O_K": 0.15 + 0.1 * (1.0 - perovskite),
        "Ti_K": 0.35 + 0.25 * (1.0 - perovskite),
        "Sr_L": 0.3 * perovskite + 1e-3,
        "bremsstrahlung": 0.15 + 0.05 * x,
    }
    truth = truth.at({f"forward.pixel.{n}.counts": counts_per_pixel * v for n, v in values.items()})
    energy = jnp.linspace(0.3, 6.0, 571)
    drawn = truth.noise(truth.forward(energy)).sample(key)
    return truth, energy, jnp.asarray(drawn, float)


def load(
    file,
    channel: str | None = None,
    elements: str | Sequence[str] | None = None,
    energy_unit: str | None = None,
    beam_keV: float | None = None,
    low_keV: float | None = None,
    high_keV: float | None = None,
    k_factors: Mapping[str, float] | None = None,
) -> tuple[dict[str, Any], Energies, Spectra]:
    """Counts `[y, x, channel]`, a line or one spectrum; the detector is calibrated by their sum.

    **Arguments:**

    - `channel`: which array of the file.
    - `elements`: those of the file if they are not given.
    - `energy_unit`: `eV` or `keV`, of an axis without a unit.
    - `beam_keV`: that of the file, or 200.
    - `low_keV`, `high_keV`: the part of the spectra that is fitted.
    - `k_factors`: as of `problem`.

    **Raises:** `ValueError` for values that are no counts, an axis that is no energy, and elements
    that neither the file nor the setting names.
    """
    field = read(file, channel)
    image = spectrum_image(field)
    energy = in_unit(
        image.axis, KILOVOLTS, image.axis.name or "the last axis", "energy_unit", energy_unit
    )
    are_counts(field.name, image.y, stated=True)
    order = np.argsort(energy)
    low = LEAST_KEV if low_keV is None else max(low_keV, LEAST_KEV)
    order = order[(energy[order] >= low) & (energy[order] <= (high_keV or np.inf))]
    if len(order) < 10:
        raise ValueError(f"{len(order)} channels from {low} keV on: 10 are needed")
    energy, y = energy[order], image.y[..., order]
    even_axis(energy, image.axis.name or "the axis")
    elements = [elements] if isinstance(elements, str) else elements
    elements = elements or _stated(field.metadata, "Sample", "elements")
    if not elements:
        raise ValueError(f"{field.name}: the file names no elements: --set elements=[Fe,O]")
    beam = beam_keV or float(
        _stated(field.metadata, "Acquisition_instrument", "TEM", "beam_energy") or 200.0
    )
    families = families_of(list(dict.fromkeys(elements)), float(energy[0]), float(energy[-1]))
    # channels that are missing somewhere are made up for by the other pixels
    seen = np.isfinite(y)
    pixels = max(int(seen.any(axis=-1).sum()), 1)
    mean = np.where(seen, y, 0.0).sum(axis=(0, 1)) / np.maximum(seen.sum(axis=(0, 1)), 1)
    there = seen.any(axis=(0, 1))
    options = image.options() | {
        "families": families,
        "low_keV": float(energy[0]),
        "high_keV": float(energy[-1]),
        "channels": len(energy),
        "beam_keV": beam,
        "counts_per_pixel": max(float(mean.sum()), 1.0),
        "k_factors": None if k_factors is None else dict(k_factors),
    }
    options |= calibration(energy[there], pixels * mean[there], families, beam)
    return options, jnp.asarray(energy, float), jnp.asarray(y, float)


def _stated(metadata: Mapping, *path: str):
    for name in path:
        metadata = metadata.get(name, {}) if isinstance(metadata, Mapping) else {}
    return metadata or None


def starts(pixel: InverseProblem, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The counts of each spectrum, dealt out by least squares."""
    shapes = np.stack([np.asarray(part.shape) for part in pixel.forward.parts.values()])
    flat = np.nan_to_num(y.reshape(-1, y.shape[-1]))
    dealt = flat @ np.linalg.pinv(shapes)
    least = 0.05 * flat.sum(axis=-1, keepdims=True) / len(shapes) + 1e-3
    dealt = np.maximum(dealt, least).T.reshape(-1, *y.shape[:-1])
    named = {f"forward.{n}.counts": v for n, v in zip(pixel.forward.parts, dealt, strict=True)}
    return {n: v for n, v in named.items() if n in pixel.priors}


def stages(
    problem: InverseProblem,
    x: Energies,
    y: Any,
    *,
    steps: int = 100,
    smooth: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
) -> list:
    """All spectra at once, each until it has converged.

    **Arguments:**

    - `steps`: of Fisher scoring, at most.
    - `smooth`: unknowns of which neighbouring pixels are alike, as far as the data show it.
    - `shared`: unknowns that are the same for the `map`, each `row` or each `column`, by name.
    """
    return [fit_each_pixel(starts, steps=steps, smooth=smooth, shared=shared)]


def conclude(solution: Solution, x: Energies, y: Any) -> Solution:
    """With the maps of all counts, and of the composition where there are k-factors."""
    first = next(iter(solution.problem.forward.pixel.parts))
    units = {"atomic_percent": "%", "weight_percent": "%"}
    solution = conclude_map(solution, units=units, derived=composition, first=f"{first}.counts")
    return dataclasses.replace(
        solution, statements=[*solution.statements, *_of_what(solution.problem.forward.pixel)]
    )


def _of_what(model: SumOf) -> Iterator[str]:
    """Which elements the composition is of."""
    there = quantified(model)
    others = dict.fromkeys(n.partition("_")[0] for n in model.parts if n != "bremsstrahlung")
    left_out = [symbol for symbol in others if symbol not in there]
    if there:
        more = f"; {', '.join(left_out)}, without a k-factor, do not count" if left_out else ""
        yield (
            f"Percent are of {', '.join(there)} alone, as in a thin specimen (Cliff and Lorimer), "
            f"with the errors of counting and not those of the k-factors{more}."
        )


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Against the truth: the same counts at all pixels, least squares, the fits."""
    guess = starts(one_pixel(truth)[0], np.asarray(x), np.asarray(y))
    return compare_map(solution, truth, guess, composition)


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Maps with errors, spectra of some pixels, how the fits ended, the sum of all spectra."""
    pixel = solution.problem.forward.pixel
    names = [f"{symbol}.atomic_percent" for symbol in quantified(pixel)]
    names += [f"{n}.counts" for n in pixel.parts]
    return map_figures(solution, x, y, names, "counts")
