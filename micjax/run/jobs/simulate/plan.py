"""The plan of `micjax simulate`: a structure, a microscope, and what is to be computed."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from micjax.core.names import plain_name, unknown_name
from micjax.core.ranges import check_ranges

ONLY = {  # settings that only some kinds have
    ("stem",): ("detectors", "source_fwhm_A", "patterns"),
    ("cbed",): ("position_A", "averaged"),
    ("hrtem",): ("focal_spread_A", "angular_spread_mrad"),
    ("stem", "cbed"): (
        "scan",
        "scan_size_A",
        "scan_origin_A",
        "scan_rotation_deg",
        "places_A",
        "outer_mrad",
        "beam_stop_mrad",
    ),
}
OF_GRID = ("scan", "scan_size_A", "scan_origin_A", "scan_rotation_deg", "source_fwhm_A")
OF_PATTERNS = ("outer_mrad", "beam_stop_mrad", "mtf")


class SimulatePlan(pydantic.BaseModel):
    """A structure, a microscope, and what is to be computed. Pairs are (y, x), tiles (x, y, z)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    what: Literal["stem", "cbed", "hrtem"]
    structure: str
    energy_keV: pydantic.PositiveFloat = 200.0
    tile: tuple[pydantic.PositiveInt, pydantic.PositiveInt, pydantic.PositiveInt] = (1, 1, 1)
    sampling_A: pydantic.PositiveFloat = 0.05  # at most
    slice_A: pydantic.PositiveFloat = 2.0  # at most
    finer: pydantic.PositiveInt = 2  # pixels of the potential: see `transmission`
    table: str = "lobato"
    projection: Literal["exact", "gridded", "finite"] | None = None  # exact, of many atoms gridded
    orthogonal: bool = False  # whether a cell with other angles may be made one with right ones
    # mean square displacement, by element if they differ; of whom nothing is said as in the file
    u_A2: float | dict[str, float] | None = None
    phonons: pydantic.NonNegativeInt = 0  # frozen configurations; 0: a damped potential
    tilt_mrad: tuple[float, float] = (0.0, 0.0)
    semiangle_mrad: pydantic.PositiveFloat = 20.0  # of the probe, or of the objective aperture
    aberrations: dict[str, float] = {}  # polar, Å and rad: C10 is minus the defocus
    focal_spread_A: pydantic.NonNegativeFloat = 0.0  # hrtem
    angular_spread_mrad: pydantic.NonNegativeFloat = 0.0  # hrtem
    detectors: dict[str, tuple[float, float]] = {
        "bright_field": (0.0, 10.0),
        "annular_bright_field": (10.0, 20.0),
        "haadf": (60.0, 150.0),
    }  # inner and outer angle, mrad
    scan: tuple[pydantic.PositiveInt, pydantic.PositiveInt] = (32, 32)
    scan_size_A: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat] | None = None  # one cell
    scan_origin_A: tuple[float, float] = (0.0, 0.0)  # its first place
    scan_rotation_deg: float = 0.0  # of its lines, from x towards y
    places_A: list[tuple[float, float]] | None = None  # (y, x) of each, instead of a grid
    position_A: tuple[float, float] = (0.0, 0.0)  # of the probe of cbed
    averaged: bool = False  # cbed over all places of the scan
    source_fwhm_A: pydantic.NonNegativeFloat = 0.0  # blurs the images of stem
    patterns: bool = False  # stem: keep every pattern, in patterns.nxs
    outer_mrad: pydantic.PositiveFloat | None = None  # of patterns
    # over patterns: radius of its disc, width of its arm along +x
    beam_stop_mrad: tuple[pydantic.PositiveFloat, pydantic.NonNegativeFloat] | None = None
    # of the camera, a Gaussian: at the highest frequency of the pixels of a pattern or hrtem image
    mtf: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    dose: pydantic.PositiveFloat | None = None  # electrons a pattern, or an image pixel
    seed: pydantic.NonNegativeInt = 0
    out: str | None = None


def make_simulate_plan(given: Mapping[str, Any]) -> SimulatePlan:
    """**Raises:** `ValueError` that names every key which is unknown or of another kind, or one
    that has nothing to do with what is computed."""
    try:
        plan = SimulatePlan.model_validate(dict(given))
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(map(_fault, error.errors()))) from error
    if plan.places_A == []:
        raise ValueError("places_A is empty: at least one place (y, x)")
    for name, value in plan.model_dump().items():
        check_ranges(name, value)
    for name in plan.detectors:
        plain_name(name)
    fields = SimulatePlan.model_fields
    for name in (name for name in fields if getattr(plan, name) != fields[name].default):
        for kinds, names in ONLY.items():
            if name in names and plan.what not in kinds:
                raise ValueError(f"{name} is a setting of {' and '.join(kinds)}, not {plan.what}")
        if name in OF_GRID and plan.places_A is not None:
            raise ValueError(f"{name} is a setting of a grid of places; places_A is a list of them")
        if name in OF_PATTERNS and plan.what == "stem" and not plan.patterns:
            raise ValueError(f"{name} is a setting of patterns, which patterns=true keeps")
    return plan


def _fault(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return unknown_name("setting", key, SimulatePlan.model_fields)
    return f"{key} is {error['input']!r}: {error['msg']}"
