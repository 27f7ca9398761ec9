"""Core-loss spectra of a file, for `micjax.problems.eels`."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from micjax.io import Field, read
from micjax.physics.spectra.edges import LineShape
from micjax.problems.eels.setting import ELECTRONVOLTS, FINE, Energies, Spectra, onset_sd_of
from micjax.problems.shared.spectrum_images import (
    are_counts,
    even_axis,
    gain_of,
    in_unit,
    spectrum_image,
)

log = logging.getLogger("micjax")


def load(
    file,
    channel: str | None = None,
    edges: str | Sequence[str] | None = None,
    energy_unit: str | None = None,
    low_eV: float | None = None,
    high_eV: float | None = None,
    energy_keV: float | None = None,
    convergence_mrad: float | None = None,
    collection_mrad: float | None = None,
    resolution_eV: float = 1.0,
    onset_sd_eV: float | None = None,
    fine_structure: int = FINE,
    white_lines: LineShape = "gaussian",
    noise: Literal["auto", "poisson", "scaled"] = "auto",
    low_loss: str | None = None,
    exposure_ratio: float | None = None,
) -> tuple[dict[str, Any], Energies, Spectra]:
    """Spectra `[y, x, channel]`, a line or one of them.

    **Arguments:**

    - `channel`: which array of the file.
    - `edges`: `[O_K, Mn_L]`.
    - `energy_unit`: `eV` or `keV`, of an axis without a unit.
    - `low_eV`, `high_eV`: the part of the spectra that is fitted.
    - `energy_keV`, `convergence_mrad`, `collection_mrad`: those of the file, or 200 keV, 20 and
        30 mrad.
    - `resolution_eV`: full width at half maximum.
    - `onset_sd_eV`, `fine_structure`, `white_lines`: as of `problem`.
    - `noise`: `poisson` for counts, `scaled` for values with a gain, which is estimated; `auto`:
        counts if all values are whole numbers not below 0 which scatter as counts do.
    - `low_loss`: a file with the low loss of each pixel, or one for all.
    - `exposure_ratio`: how long the edges were exposed over how long the low loss was; as the files
        say it, or 1.

    **Raises:** `ValueError` for no edges, other shapes, an axis that is no energy, and counts that
    are none.
    """
    if not edges:
        raise ValueError("which edges? They must be named: --set edges=[O_K,Mn_L]")
    edges = [edges] if isinstance(edges, str) else edges
    field = read(file, channel)
    image = spectrum_image(field)
    energy = in_unit(
        image.axis, ELECTRONVOLTS, image.axis.name or "the last axis", "energy_unit", energy_unit
    )
    order = np.argsort(energy)
    low, high = low_eV or 0.0, high_eV or np.inf
    order = order[(energy[order] >= max(low, 1.0)) & (energy[order] <= high)]
    if len(order) < 30:
        raise ValueError(f"{len(order)} channels from {low} to {high} eV: 30 are needed")
    energy, y = energy[order], image.y[..., order]
    even_axis(energy, image.axis.name or "the axis")
    counted = are_counts(field.name, y, noise == "poisson")
    law = noise if noise != "auto" else "poisson" if counted else "scaled"
    options = image.options() | {
        "edges": list(edges),
        "low_eV": float(energy[0]),
        "high_eV": float(energy[-1]),
        "channels": len(energy),
        "resolution_eV": resolution_eV,
        "onset_sd_eV": onset_sd_eV,
        "fine_structure": fine_structure,
        "white_lines": white_lines,
        "noise": law,
        "gain": gain_of(y) if law == "scaled" else 1.0,
        "level": float(np.nanpercentile(np.abs(y), 99.9)) or 1.0,
        "low_loss": None if low_loss is None else str(pathlib.Path(low_loss).absolute()),
    }
    for name, given, path, usual in (
        ("energy_keV", energy_keV, ("beam_energy",), 200.0),
        ("convergence_mrad", convergence_mrad, ("convergence_angle",), 20.0),
        ("collection_mrad", collection_mrad, ("Detector", "EELS", "collection_angle"), 30.0),
    ):
        stated = _stated(field.metadata, "Acquisition_instrument", "TEM", *path)
        if given is None and stated is None:
            log.warning("%s = %g: neither the file nor a setting says it", name, usual)
        options[name] = float(given if given is not None else stated or usual)
    if low_loss is not None:
        options["exposure_ratio"] = exposure_ratio or exposure_ratio_of(field, read(low_loss))
    elif exposure_ratio is not None:
        raise ValueError(f"exposure_ratio = {exposure_ratio}: there is no low_loss it belongs to")
    step = float(np.median(np.diff(energy)))
    if onset_sd_eV is None and onset_sd_of(step) == 0:
        log.info("channels of %.3g eV: edges are taken to be where the table has them", step)
    if law == "scaled":
        log.info("noise: variance %.4g times the mean, from neighbouring channels", options["gain"])
    return options, jnp.asarray(energy, float), jnp.asarray(y, float)


def exposure_ratio_of(edges: Field, low_loss: Field) -> float:
    """From what the files say of a pixel, 1 where they do not."""
    times = [_exposure_s(field.metadata) for field in (edges, low_loss)]
    if None in times:
        log.warning(
            "exposure_ratio = 1: the files do not say how long the edges and the low loss were "
            "exposed; areal densities are proportional to its inverse"
        )
        return 1.0
    return times[0] / times[1]


def _exposure_s(metadata: Mapping) -> float | None:
    tem = "Acquisition_instrument", "TEM"
    exposure = _stated(metadata, *tem, "Detector", "EELS", "exposure")
    if exposure is None:
        dwell = _stated(metadata, *tem, "dwell_time")
        return None if dwell is None else float(dwell)
    return float(exposure) * float(_stated(metadata, *tem, "Detector", "EELS", "frame_number") or 1)


def _stated(metadata: Mapping, *path: str):
    for name in path:
        metadata = metadata.get(name, {}) if isinstance(metadata, Mapping) else {}
    return metadata or None
