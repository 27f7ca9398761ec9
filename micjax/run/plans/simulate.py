"""The plan of `micjax simulate`: a structure, a microscope, and what is to be computed."""

from typing import Annotated, Literal

import pydantic

from micjax.run.plans.base import FilePath, Name, Plan

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


class SimulatePlan(Plan):
    """A structure, a microscope, and what is to be computed. Pairs are (y, x), tiles (x, y, z)."""

    FILES = ("structure",)

    kind: Literal["simulate"] = "simulate"
    what: Literal["stem", "cbed", "hrtem"]
    structure: FilePath
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
    detectors: dict[Name, tuple[float, float]] = {
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

    def check(self, where: str) -> None:
        """**Raises:** `ValueError` also for a setting that has nothing to do with what is
        computed."""
        super().check(where)
        if self.places_A == []:
            raise ValueError(f"{where}: places_A is empty: at least one place (y, x)")
        fields = type(self).model_fields
        for name in (name for name in fields if getattr(self, name) != fields[name].default):
            if reason := self._out_of_place(name):
                raise ValueError(f"{where}: {name} is a setting of {reason}")

    def _out_of_place(self, name: str) -> str:
        for kinds, names in ONLY.items():
            if name in names and self.what not in kinds:
                return f"{' and '.join(kinds)}, not {self.what}"
        if name in OF_GRID and self.places_A is not None:
            return "a grid of places; places_A is a list of them"
        if name in OF_PATTERNS and self.what == "stem" and not self.patterns:
            return "patterns, which patterns=true keeps"
        return ""
