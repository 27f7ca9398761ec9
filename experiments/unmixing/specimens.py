"""Made-up spectrum images of which all is known: X-ray maps, energy loss, rings of diffraction.

Lines, edges and lattices are those of real substances (X-ray Data Booklet 2009; the EELS Atlas of
Ahn & Krivanek 1983; lattice constants of the elements), their intensities are rough. Substances and
maps are drawn from the seed.
"""

from typing import NamedTuple

import numpy as np
import scipy.ndimage

SHAPE = (48, 48)
SETS = ("xray", "buried", "loss", "rings")
COUNTS = {"xray": 200.0, "buried": 200.0, "loss": 20_000.0, "rings": 1000.0}  # a pixel, on average


class SpectrumImage(NamedTuple):
    counts: np.ndarray  # [p, f]
    abundance: np.ndarray  # [p, k], in expected counts
    spectrum: np.ndarray  # [k, f], each adds up to one
    signal: np.ndarray  # [f]: keV, eV, 1/Å
    substances: tuple[str, ...]


def specimen(name: str, seed: int, shape: tuple[int, int] = SHAPE) -> SpectrumImage:
    """`xray`, `loss`, `rings`: grains that go through the foil, with blurred borders. `buried`:
    X-ray maps of spheres in a matrix that are smaller than the foil is thick: no pixel shows
    them alone. Two to four substances; the thickness varies by a fifth."""
    rng = np.random.default_rng([seed, SETS.index(name)])
    count = int(rng.integers(2, 5))
    signal, library = {"loss": loss_spectra, "rings": ring_profiles}.get(name, xray_spectra)(rng)
    chosen = apart(rng, library, count)
    spectrum = np.stack([library[c] / library[c].sum() for c in chosen])
    share = (spheres if name == "buried" else grains)(rng, count, shape)
    thickness = 1.0 + 0.2 * smooth(rng, shape, 12.0)
    abundance = COUNTS[name] * np.clip(thickness, 0.3, None).reshape(-1, 1) * share
    counts = rng.poisson(abundance @ spectrum).astype(float)
    return SpectrumImage(counts, abundance, spectrum, signal, tuple(chosen))


def apart(rng, library: dict[str, np.ndarray], count: int, least_deg: float = 3.0) -> list[str]:
    """So many substances whose spectra are no closer than this angle."""
    chosen: list[str] = []
    for name in rng.permutation(sorted(library)):
        angles = [angle_deg(library[name], library[other]) for other in chosen]
        if all(a > least_deg for a in angles):
            chosen.append(str(name))
        if len(chosen) == count:
            break
    return chosen


def angle_deg(a, b) -> float:
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.rad2deg(np.arccos(min(cosine, 1.0))))


# --- where the substances are ----------------------------------------------------------------


def smooth(rng, shape, width: float) -> np.ndarray:
    """A random field of mean 0 and standard deviation 1."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), width, mode="wrap")
    return (field - field.mean()) / field.std()


def grains(rng, count: int, shape) -> np.ndarray:
    """Shares [p, k]: the highest of as many random fields, blurred by 1.5 pixels."""
    fields = np.stack([smooth(rng, shape, 5.0) for _ in range(count)])
    hard = (fields == fields.max(axis=0)).astype(float)
    soft = np.stack([scipy.ndimage.gaussian_filter(h, 1.5, mode="nearest") for h in hard])
    return (soft / soft.sum(axis=0)).reshape(count, -1).T


def spheres(rng, count: int, shape) -> np.ndarray:
    """Shares [p, k]: spheres of each substance but the first, which is the matrix, 0.4 to 0.8 of
    the foil across; where they lie above each other they fill the foil at most."""
    y, x = np.indices(shape)
    share = np.zeros((count, *shape))
    for k in range(1, count):
        for _ in range(6):
            cy, cx = rng.uniform(0.0, shape[0]), rng.uniform(0.0, shape[1])
            radius = rng.uniform(4.0, 8.0)
            height = np.sqrt(np.clip(1.0 - ((y - cy) ** 2 + (x - cx) ** 2) / radius**2, 0.0, None))
            share[k] = np.maximum(share[k], 0.1 * radius * height)
    share /= np.maximum(share.sum(axis=0), 1.0)
    share[0] = 1.0 - share.sum(axis=0)
    return share.reshape(count, -1).T


# --- X-rays ----------------------------------------------------------------------------------

LINES_KEV = {  # energies, with rough intensities for equal numbers of atoms
    "O": ((0.525, 0.5),),
    "Mg": ((1.254, 0.8),),
    "Al": ((1.487, 0.9),),
    "Si": ((1.740, 1.0),),
    "P": ((2.014, 1.0),),
    "S": ((2.308, 1.0),),
    "Ca": ((3.692, 1.0), (4.013, 0.13)),
    "Ti": ((4.511, 1.0), (4.932, 0.13), (0.452, 0.3)),
    "Cr": ((5.415, 1.0), (5.947, 0.13), (0.573, 0.35)),
    "Mn": ((5.899, 1.0), (6.490, 0.13), (0.637, 0.35)),
    "Fe": ((6.404, 1.0), (7.058, 0.13), (0.705, 0.4)),
    "Co": ((6.930, 0.95), (7.649, 0.13), (0.776, 0.45)),
    "Ni": ((7.478, 0.9), (8.265, 0.12), (0.852, 0.5)),
    "Cu": ((8.048, 0.85), (8.905, 0.12), (0.930, 0.55)),
    "Zn": ((8.639, 0.8), (9.572, 0.11), (1.012, 0.6)),
}
COMPOUNDS = {
    "Al": {"Al": 1},
    "Si": {"Si": 1},
    "Fe": {"Fe": 1},
    "Al2O3": {"Al": 2, "O": 3},
    "SiO2": {"Si": 1, "O": 2},
    "MgO": {"Mg": 1, "O": 1},
    "Mg2SiO4": {"Mg": 2, "Si": 1, "O": 4},
    "CaSiO3": {"Ca": 1, "Si": 1, "O": 3},
    "Ca5P3O13": {"Ca": 5, "P": 3, "O": 13},
    "TiO2": {"Ti": 1, "O": 2},
    "FeTiO3": {"Fe": 1, "Ti": 1, "O": 3},
    "Cr2O3": {"Cr": 2, "O": 3},
    "Fe2O3": {"Fe": 2, "O": 3},
    "FeS2": {"Fe": 1, "S": 2},
    "NiTi": {"Ni": 1, "Ti": 1},
    "Ni3Al": {"Ni": 3, "Al": 1},
    "CoO": {"Co": 1, "O": 1},
    "Al2Cu": {"Al": 2, "Cu": 1},
    "CuZn": {"Cu": 1, "Zn": 1},
    "ZnS": {"Zn": 1, "S": 1},
    "MnO2": {"Mn": 1, "O": 2},
}


def xray_spectra(rng) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """0.2 to 10 keV by 0.04; a detector of 130 eV at 5.9 keV; a background as of Kramers (1923),
    absorbed below 1 keV."""
    energy = 0.2 + 0.04 * np.arange(245)
    background = (12.0 - energy) / energy * (1.0 - np.exp(-((energy / 0.8) ** 2)))
    spectra = {}
    for name, formula in COMPOUNDS.items():
        peaks = np.zeros_like(energy)
        for element, atoms in formula.items():
            for at, strength in LINES_KEV[element]:
                # electronic noise, and the spread of the pairs that a photon makes in silicon
                sd = np.sqrt(0.02**2 + 0.12 * 0.00365 * at)
                peaks += atoms * strength / sd * np.exp(-0.5 * ((energy - at) / sd) ** 2)
        part = rng.uniform(0.15, 0.3)
        spectra[name] = (1.0 - part) * peaks / peaks.sum() + part * background / background.sum()
    return energy, spectra


# --- energy loss -----------------------------------------------------------------------------

EDGES_EV = {  # onset, height of the step, strengths of two white lines and their distance
    "N": (401.0, 1.0, 0.6, 0.0, 0.0),
    "Ti": (456.0, 0.9, 1.8, 1.4, 5.5),
    "O": (532.0, 0.7, 0.6, 0.0, 0.0),
    "Cr": (575.0, 0.8, 1.6, 1.0, 8.5),
    "Mn": (640.0, 0.7, 1.6, 0.8, 11.0),
    "Fe": (708.0, 0.6, 1.3, 0.6, 13.0),
    "Co": (779.0, 0.5, 1.0, 0.45, 15.0),
    "Ni": (855.0, 0.5, 0.8, 0.35, 17.0),
}
LOSS_COMPOUNDS = {
    "TiO2": {"Ti": 1, "O": 2},
    "TiN": {"Ti": 1, "N": 1},
    "CrN": {"Cr": 1, "N": 1},
    "Cr2O3": {"Cr": 2, "O": 3},
    "MnO": {"Mn": 1, "O": 1},
    "Fe": {"Fe": 1},
    "Fe4N": {"Fe": 4, "N": 1},
    "Fe2O3": {"Fe": 2, "O": 3},
    "FeTiO3": {"Fe": 1, "Ti": 1, "O": 3},
    "CoO": {"Co": 1, "O": 1},
    "NiO": {"Ni": 1, "O": 1},
    "NiTi": {"Ni": 1, "Ti": 1},
    "Ni": {"Ni": 1},
    "SiO2": {"O": 2},
    "C": {},
}


def loss_spectra(rng) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """370 to 920 eV by 2.5, 3 eV wide: edges on a background that falls as a power of the loss."""
    loss = 370.0 + 2.5 * np.arange(221)
    spectra = {}
    for name, formula in LOSS_COMPOUNDS.items():
        total = (loss / 370.0) ** -rng.uniform(2.8, 3.2)
        for element, atoms in formula.items():
            onset, height, first, second, gap = EDGES_EV[element]
            share = atoms / sum(formula.values())
            step = height * (loss / onset) ** -2.8 / (1.0 + np.exp(-(loss - onset) / 1.5))
            lines = sum(
                s * np.exp(-0.5 * ((loss - onset - 2.0 - d) / 2.5) ** 2)
                for s, d in ((first, 0.0), (second, gap))
            )
            # the jump at an edge is a part of the background there
            total = total + 0.5 * share * (onset / 370.0) ** -3.0 * (step + lines)
        spectra[name] = total
    return loss, spectra


# --- rings of diffraction --------------------------------------------------------------------

CUBIC_A = {
    "Al": (4.05, "F"),
    "Ni": (3.52, "F"),
    "Cu": (3.61, "F"),
    "Au": (4.08, "F"),
    "Pb": (4.95, "F"),
    "Fe": (2.87, "I"),
    "W": (3.165, "I"),
    "Nb": (3.30, "I"),
    "Si": (5.43, "D"),
    "Ge": (5.66, "D"),
}
HALOS_PERA = {"carbon": ((0.29, 0.35), (0.48, 1.0), (0.84, 0.6)), "SiO2": ((0.24, 1.0), (0.7, 0.4))}


def ring_profiles(rng) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """0.15 to 1.2 1/Å by 0.008: rings of powders of few crystals, halos of glasses, on the foot of
    the beam."""
    q = 0.15 + 0.008 * np.arange(132)
    foot = np.exp(-q / 0.12)
    spectra = {}
    for name, (edge, lattice) in CUBIC_A.items():
        rings = np.zeros_like(q)
        for at, weight in reflections(edge, lattice):
            strength = weight * np.exp(-((at / 0.5) ** 2)) * rng.gamma(3.0, 1.0 / 3.0)
            rings += strength * np.exp(-0.5 * ((q - at) / 0.009) ** 2)
        spectra[name] = 0.6 * rings / rings.sum() + 0.4 * foot / foot.sum()
    for name, halos in HALOS_PERA.items():
        halo = sum(s * np.exp(-0.5 * ((q - at) / 0.04) ** 2) for at, s in halos)
        spectra[name] = 0.6 * halo / halo.sum() + 0.4 * foot / foot.sum()
    return q, spectra


def reflections(edge_A: float, lattice: str) -> list[tuple[float, float]]:
    """Radii (1/Å) and multiplicities of a face-centred (F), body-centred (I) or diamond (D)
    lattice."""
    n = np.arange(-7, 8)
    h, k, l = (a.ravel() for a in np.meshgrid(n, n, n))  # noqa: E741 - Miller's indices
    same = (h % 2 == k % 2) & (k % 2 == l % 2)
    allowed = {"F": same, "I": (h + k + l) % 2 == 0, "D": same & ((h + k + l) % 4 != 2)}[lattice]
    square = (h**2 + k**2 + l**2)[allowed]
    sizes, multiplicity = np.unique(square[square > 0], return_counts=True)
    radius = np.sqrt(sizes) / edge_A
    return [(r, float(m)) for r, m in zip(radius, multiplicity, strict=True) if r < 1.25]
