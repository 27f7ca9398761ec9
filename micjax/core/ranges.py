"""What the numbers of a plan may be: one table of physical ranges, by name and by unit.

A setting, a value or the number of a list is looked up by its dotted name,
`options.detectors.haadf`, `forward.tip.radius_nm`. First the names of the table, from the outermost
part of the dotted name on; then the units in which the name ends, from the innermost part on;
what neither knows has only to be a number that float32 can hold. Ends belong to the range.

The ranges are wide: they tell nonsense from what an expert may want to try. What is sensible for
one problem only is checked where that problem is built. A word without a unit (`most`, `numbers`)
may mean something else in a module that is not ours: there the names with units count alone.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import numpy as np


class Range(NamedTuple):
    """The lowest and the highest number that is allowed, and whether it is a whole one."""

    low: float
    high: float
    whole: bool = False

    def __str__(self) -> str:
        kind = "whole numbers" if self.whole else "numbers"
        return f"{kind} from {self.low:.10g} to {self.high:.10g}"


TINY, HUGE = 1e-30, 1e30  # of what is in units of the data, which may be any; float32 ends at 3e38
ANY = Range(-HUGE, HUGE)


def _whole(low: int, high: int) -> Range:
    return Range(low, high, True)


NAMES: dict[str, Range] = {
    # --- how long an engine works; no step, draw or chain at all gives the start back as a result
    "steps chunk": _whole(1, 10_000_000),
    "samples draws": _whole(1, 10_000_000),
    # none: the tip keeps its parameters, the fits are all there is
    "tip_steps chains warmup": _whole(0, 10_000_000),
    "starts": _whole(1, 100_000),
    "learning_rate": Range(1e-12, 1e3),
    "weight_decay": Range(0.0, 1.0),
    "clip": Range(1e-12, HUGE),  # of the norm of a gradient
    "average": Range(0.0, 0.99999),
    "held_out": _whole(1, 100_000),  # batches
    "tolerance": Range(0.0, HUGE),  # of a loss or of an outcome; 0 never stops
    "threshold_sigmas": Range(0.1, 100.0),
    "least_score": Range(0.0, 1.0),
    "zoom": Range(0.25, 2.0),
    "examples edge_px": _whole(1, 100_000),
    "films": _whole(0, 100_000),  # of the examples: there may be none
    "seed": _whole(0, 2**32 - 1),  # JAX drops higher bits: two seeds would be one
    # --- explorations
    "budget batch initial wanted": _whole(1, 10_000_000),
    "networks": _whole(1, 1000),
    "side": _whole(2, 1024),  # of a patch of an image
    "rates": Range(TINY, HUGE),  # in units of an axis
    "patience": Range(1.0, 1e6),  # times what it should take
    "dwell_s settle_s seconds": Range(0.0, 1e9),  # thirty years
    "dose_per_s": Range(0.0, 1e18),
    # --- arrays: the largest cameras have 16384 pixels a side
    "ny nx pixels scan": _whole(1, 16384),
    "frames images": _whole(1, 100_000),
    "most_drift_px": _whole(0, 16384),
    "tip_size": _whole(1, 1001),
    "tip_radii": _whole(1, 1000),
    "passes": _whole(1, 100),  # of an unrolled network
    "noise_sd": Range(1e-12, 1e3),  # over what it is the noise of
    "phases": _whole(0, 1000),  # 0: as many as the data show
    "most_phases most_components": _whole(1, 1000),
    "components": _whole(0, 1000),  # 0: as many as the data show
    "channels": _whole(2, 1_000_000),
    "counts_per_pixel": Range(1e-3, 1e12),
    "signal_start signal_min signal_max": Range(-1e12, 1e12),  # in the unit of the axis
    "signal_step": Range(TINY, HUGE),  # in the unit of the axis
    "peaks": _whole(0, 20),  # 0 is one of several to choose from
    "neighbours": _whole(0, 1000),
    "within centres signal_low signal_high": Range(-1e12, 1e12),  # in the unit of the axis
    "gain_error": Range(-0.1, 0.1),
    "gain": Range(TINY, HUGE),  # units of the data per count
    "fine_structure": _whole(0, 50),
    "onset_sd_eV": Range(0.0, 100.0),
    "exposure_ratio": Range(1e-9, 1e9),
    "k_factors": Range(1e-6, 1e6),
    "sigma_factor amplitude_factor": Range(1.001, HUGE),
    "counts": Range(1e-3, 1e12),
    "patches grains": _whole(1, 1_000_000),
    "window_px": _whole(4, 16384),
    "step_px": _whole(1, 16384),
    "radii angles": _whole(2, 10_000),
    "samples_per_pixel": _whole(1, 10_000),
    "tile": _whole(1, 1000),
    "finer": _whole(1, 16),
    "phonons": _whole(0, 100_000),
    "sets": _whole(1, 10_000),
    "moments": _whole(0, 10_000),  # 0 damps the potential
    # --- atoms
    "numbers": _whole(1, 118),  # the tables of scattering factors say where they end
    "vacant": _whole(0, 10_000_000),  # indices of atoms
    "fractions": Range(0.0, 1.0),
    "occupancy most": Range(0.0, 100.0),  # 1 is full; other elements may scatter more
    # mean square displacement along an axis: 0.002 to 0.05 in crystals, 1 is B = 80 Å^2 of proteins
    "u_A2": Range(0.0, 1.0),
    "strain": Range(-0.3, 0.3),  # beyond it is another crystal
    "strain_sd": Range(0.0, 0.3),
    "box_A cell_A": Range(0.5, 1e5),
    "thickness_A most_A": Range(0.1, 1e5),  # 10 µm is opaque at any energy
    "slice_A": Range(0.05, 10.0),  # thicker than a cell, a slice is no thin object
    "sampling_A pixel_A": Range(1e-3, 100.0),
    "k_min_perA k_max_perA": Range(1e-4, 1e3),
    "column_A": Range(1e-3, 10.0),
    # --- electrons. Below 10 keV neither the tables nor forward scattering hold; 3 MeV is the
    # highest of all microscopes
    "energy_keV": Range(10.0, 3000.0),
    "tilt_mrad": Range(-60.0, 60.0),  # the propagator takes small ones; precession goes to 50
    "tilt_sd_mrad": Range(0.0, 60.0),
    "semiangle_mrad": Range(0.01, 200.0),  # probes reach 80, objective apertures more
    "angular_spread_mrad": Range(0.0, 20.0),  # of an illumination that is all but parallel
    "focal_spread_A": Range(0.0, 1e4),
    "source_fwhm_A": Range(0.0, 100.0),
    "detectors reach_mrad outer_mrad beam_stop_mrad": Range(0.0, 1000.0),  # forward scattering
    "smooth_mrad centre_sd_mrad semiangle_sd_mrad": Range(0.0, 200.0),
    "mrad_per_px": Range(1e-6, 100.0),
    "mtf": Range(1e-3, 1.0),
    # aberrations, polar and Cartesian, Å: 0.1 mm of defocus, 1 mm, 10 cm of Cs, 10 m
    "C1[0-9] C1[0-9][ab] defocus_A changes_A": Range(-1e6, 1e6),
    "C2[0-9] C2[0-9][ab]": Range(-1e7, 1e7),
    "C3[0-9] C3[0-9][ab]": Range(-1e9, 1e9),
    "C[45][0-9] C[45][0-9][ab]": Range(-1e11, 1e11),
    "phi[0-9][0-9]": Range(-10.0, 10.0),  # rad: a turn either way
    # --- counts of an image or a pixel, and noise in units of the data
    "dose mean_counts electrons_per_px": Range(1e-9, 1e18),
    "dose_sd": Range(1e-9, 10.0),  # a fraction
    "counts_per_unit sigma level y_scale": Range(TINY, HUGE),
    "diffuse diffuse_share diffuse_sd": Range(0.0, 100.0),
    "particles atoms": Range(TINY, HUGE),
    "corner_per_px atom_px": Range(1e-9, 1e6),
    "scatter model_error": Range(0.0, 100.0),
    # --- probes
    "pixel_nm": Range(1e-6, 1e7),
    "drop_nm registration_nm cone_height_nm set_point_nm": Range(0.0, 1e7),
    "half_angle_deg cone_half_angle_deg": Range(0.1, 89.9),
    "rotation_deg": Range(-360.0, 360.0),
    "proportional integral": Range(1e-12, 100.0),  # gains of a sample
    "f0_kHz low_kHz high_kHz": Range(1e-9, 1e12),
    "Q": Range(1e-3, 1e10),  # below 1/2 nothing swings, but it still answers
}

# Of what only the unit is known: it is not negative with one of these words before the unit.
SIZES = (
    "curvature diameter fwhm limit noise period pitch pixel radius reach sampling sd sigma size "
    "slice spacing spread step thickness wavelength width"
).split()

UNITS: dict[str, float] = {  # the largest magnitude
    "pm": 1e12,
    "nm": 1e9,  # 1 m
    "um": 1e6,
    "A": 1e10,
    "A2": 1e20,
    "px": 1e6,
    "mrad": 1e4,
    "rad": 1e3,
    "deg": 1e5,
    "eV": 1e8,
    "keV": 1e5,
    "V": 1e7,
    "mV": 1e10,
    "nN": 1e9,
    "pN": 1e12,
    "nA": 1e12,
    "pA": 1e15,
    "Hz": 1e16,
    "kHz": 1e13,
    "s": 1e9,
    "ms": 1e12,
    "us": 1e15,
    "K": 1e6,
}

_WITH_UNIT = re.compile(rf"_({'|'.join(UNITS)})$")
_BY_NAME = [(pattern, limits) for words, limits in NAMES.items() for pattern in words.split()]
_BY_NAME_AND_UNIT = [
    (pattern, limits) for pattern, limits in _BY_NAME if _WITH_UNIT.search(pattern)
]


def range_of(name: str, ours: bool = True) -> Range:
    """The range of the number with this dotted name, `ANY` where only the magnitude matters."""
    parts = [part.partition("[")[0] for part in name.split(".")]
    for part in parts:
        for pattern, limits in _BY_NAME if ours else _BY_NAME_AND_UNIT:
            if fnmatchcase(part, pattern):
                return limits
    for part in reversed(parts):
        if unit := _WITH_UNIT.search(part):
            highest, word = UNITS[unit[1]], part[: unit.start()].rpartition("_")[2]
            return Range(0.0 if word in SIZES else -highest, highest)
    return ANY


def unit_of(name: str) -> str:
    """The unit in which a name ends, none for a plain number: V of `coercive_rising_V`, 1/V of
    `slope_per_V`."""
    unit = _WITH_UNIT.search(name)
    if unit is None:
        return ""
    return f"1/{unit[1]}" if name[: unit.start()].endswith("_per") else unit[1]


def check_ranges(name: str, value: Any, ours: bool = True, where: str = "") -> None:
    """Every number in `value`, which may hold lists, arrays and mappings of numbers.

    **Arguments:**

    - `name`: dotted; of an element it is continued, `u_A2.Sr`, `tile[2]`.
    - `ours`: whether words without a unit have the meaning that they have in micjax.
    - `where`: what the message begins with.

    **Raises:** `ValueError` for the first that is not finite or not in its range.
    """
    for name_of_one, number in _numbers(name, value):
        allowed = range_of(name_of_one, ours)
        fits = allowed.low <= number <= allowed.high  # not so for NaN
        if not fits or (allowed.whole and number != math.floor(number)):
            raise ValueError(f"{where}{name_of_one} is {_shown(number)}: {allowed} are allowed")


def _shown(number: int | float) -> str:
    try:
        return f"{number:.10g}"
    except OverflowError:  # a whole number beyond all floats
        return "a number too long to be written here"


def _numbers(name: str, value: Any, listed: bool = False) -> Iterator[tuple[str, int | float]]:
    """The real numbers in `value` with their dotted names; other things are passed over."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _numbers(f"{name}[{i}]", inner, listed=True)
    elif isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        if array.dtype.kind in "iuf" and array.size:
            yield from _extremes(name, array)
    elif isinstance(value, str) and listed:  # YAML reads `nan` as text, arrays are made of it
        with contextlib.suppress(ValueError):
            yield name, float(value)
    elif isinstance(value, np.integer | np.floating):
        yield name, value.item()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _extremes(name: str, array: np.ndarray) -> Iterator[tuple[str, int | float]]:
    """Of an array the numbers that decide: the lowest, the highest (NaN is both), a broken one."""
    flat = array.ravel()
    broken = np.flatnonzero(flat != np.floor(flat))[:1]
    for i in dict.fromkeys([flat.argmin(), flat.argmax(), *broken]):
        place = "".join(f"[{k}]" for k in np.unravel_index(i, array.shape))
        yield name + place, flat[i].item()


# --- what a setting has to be, said in one way everywhere ---------------------------------------


def positive(**values) -> None:
    """**Raises:** `ValueError` for the first of the values that is not finite and above 0, or an
    array with such an element."""
    for name, value in values.items():
        if not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
            raise ValueError(f"{name} = {value}: must be positive")


def not_negative(**values) -> None:
    """**Raises:** `ValueError` for the first of the values that is not finite or below 0."""
    for name, value in values.items():
        if not np.all(np.isfinite(value) & (np.asarray(value) >= 0)):
            raise ValueError(f"{name} = {value}: must not be negative")
