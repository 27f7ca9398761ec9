"""Which crystal an image is of, among twenty.

    python experiments/phase_map/naming.py FOLDER            images of atomagined (MaterialEyes)
    python experiments/phase_map/naming.py --made-up prototypes --images 200 --seed 12
    python experiments/phase_map/naming.py --made-up random --images 200

Images of atomagined are 26 Å wide, by Prismatic, clean and blurred with a background. The
candidates are the columns of each file, eight well-known structures along an axis, and random
lattices. Which column is which element is not in the files, only the formula: an element is drawn
for each kind of column (those with the same neighbours), and evidence is the mean over draws, in
one of which all atoms are as bright as each other. The image's own
spectrum is compared with theirs, in windows of 13 Å. No constant was chosen on these images.

Made-up images are as large: columns as bright as Z^1.5 to Z^2, within 15 %, 0.35 to 0.6 Å wide;
every other one is blurred by 0.4 Å at most and has a background, a gradient and 3 to 30 electrons a
pixel. In half of the cases all atoms of the candidates are as bright as each other. `prototypes`
chose the constants of naming, `random` did not. Prints one JSON line for each
image of atomagined, or for each kind of made-up images.
"""

import argparse
import json
import pathlib
import re

import ase.data
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.sparse
import scipy.spatial
import scipy.special
import specimens
from crystals import Axis, prototypes, random_lattices

from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.polycrystal import PlaneLattice, columns_px
from micjax.physics.patches.projection import BRIGHTNESS
from micjax.physics.patches.unmixing.equivariant import correlations
from micjax.physics.patches.unmixing.naming import (
    Pattern,
    compared,
    mean_rings,
    pattern,
)
from micjax.physics.patches.windows import Hann

EDGE_A, EDGE_PX, CANDIDATES = 26.0, 256, 20
SAMPLING_A = EDGE_A / EDGE_PX
IMAGES = {"clean": "stem00-clean", "blurred": "stem00-blbk1"}
POLAR = Polar(LocalSpectra(Hann(), EDGE_PX // 2, 16, SAMPLING_A, 0.9), 0.2)
SAME_A = 0.1  # columns that are nearer are one
DRAWS, NEIGHBOURS = 64, 30


def template(image) -> jnp.ndarray:
    """The mean spectrum of all patches."""
    image = jnp.asarray((image - image.mean()) / image.std())
    return mean_rings(image, POLAR)


def cosines(seen, patterns: Pattern) -> np.ndarray:
    """What naming was by before: of amplitudes, with the crystal or its mirror image."""
    amplitude = patterns.amplitude * POLAR.area
    both = [correlations(seen[None], v)[0].max(-1) for v in (amplitude, amplitude[..., ::-1])]
    size = jnp.sqrt(jnp.sum(amplitude**2, axis=(1, 2)) * jnp.sum(seen**2))
    return np.asarray(jnp.maximum(*both) / size)


def stacked(patterns: list[Pattern]) -> Pattern:
    return jax.tree.map(lambda *v: jnp.stack(v), *patterns)


def lattice_of(places_A) -> PlaneLattice:
    """Of columns in a part of a plane: the two shortest moves that bring those within it onto
    others, and the mean number of atoms at each place of the cell. What does not repeat within the
    part is a cell as large as it."""
    columns, atoms = _columns(places_A)
    middle = columns[np.argmin(np.linalg.norm(columns - columns.mean(0), axis=1))]
    low, high = columns.min(0), columns.max(0)
    tree = scipy.spatial.cKDTree(columns)
    moves = []
    for move in columns - middle:
        moved = columns + move
        moved = moved[np.all((moved > low) & (moved < high), axis=1)]
        if len(moved) > len(columns) / 4 and np.mean(tree.query(moved)[0] < SAME_A) > 0.95:
            moves.append(move)
    moves = sorted(moves, key=np.linalg.norm)[1:] + list(np.diag(high - low))
    first = moves[0] / np.linalg.norm(moves[0])
    across = [abs(first[0] * y - first[1] * x) for x, y in moves]
    vectors = np.stack([moves[0], moves[int(np.argmax(np.array(across) > SAME_A))]])
    basis, weight = [], []
    for place, count in zip(columns @ np.linalg.inv(vectors), atoms, strict=True):
        apart = np.array(basis).reshape(-1, 2) - place
        near = np.linalg.norm((apart - np.round(apart)) @ vectors, axis=1) < 2.0 * SAME_A
        if near.any():
            weight[int(np.argmax(near))].append(count)
        else:
            basis.append(place)
            weight.append([count])
    return PlaneLattice(vectors, np.array(basis) % 1.0, np.array([np.mean(w) for w in weight]))


def _columns(places_A) -> tuple[np.ndarray, np.ndarray]:
    """Atoms above each other as one, and how many they are."""
    pairs = scipy.spatial.cKDTree(places_A).query_pairs(SAME_A, output_type="ndarray")
    ones, n = np.ones(len(pairs)), len(places_A)
    joined = scipy.sparse.csr_array((ones, (pairs[:, 0], pairs[:, 1])), (n, n))
    _, column = scipy.sparse.csgraph.connected_components(joined, directed=False)
    atoms = np.bincount(column)
    return np.stack([np.bincount(column, v) / atoms for v in np.asarray(places_A).T], 1), atoms


def kinds_of(lattice: PlaneLattice) -> np.ndarray:
    """A number for each column of a cell, the same for those with neighbours as far away."""
    cells = np.stack(np.meshgrid(*2 * [np.arange(-4, 5)], indexing="ij"), -1).reshape(-1, 1, 2)
    every = ((cells + lattice.basis) @ lattice.vectors_A).reshape(-1, 2)
    here = lattice.basis @ lattice.vectors_A
    near = np.sort(np.linalg.norm(here[:, None] - every, axis=-1), axis=1)[:, :NEIGHBOURS]
    alike = np.abs(near[:, None] - near).max(-1) < SAME_A
    return alike.argmax(1)


def draws(rng, lattice: PlaneLattice, brightness, share) -> np.ndarray:
    """Brightness of an atom in each column of a cell, once for each draw; the first are all 1."""
    kind = kinds_of(lattice)
    elements = rng.choice(brightness, (DRAWS - 1, len(kind)), p=share)
    return np.concatenate([np.ones((1, len(kind))), elements[:, kind]])


def elements_of(formula: str) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of the elements of a formula, and how many of its atoms they are; brackets without
    their numbers, as an estimate."""
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    count = np.array([float(n or 1) for _, n in parts])
    numbers = np.array([ase.data.atomic_numbers[symbol] for symbol, _ in parts])
    return numbers**BRIGHTNESS, count / count.sum()


def drawn_patterns(rng, places_A, formula: str) -> list[Pattern]:
    """Of columns in a part of a plane, with elements drawn."""
    lattice = lattice_of(places_A)
    columns, atoms = _columns(places_A)
    apart = (columns @ np.linalg.inv(lattice.vectors_A))[:, None] - lattice.basis
    place = np.linalg.norm((apart - np.round(apart)) @ lattice.vectors_A, axis=-1).argmin(1)
    power = pattern(lattice, POLAR).power
    patterns = []
    for brightness in draws(rng, lattice, *elements_of(formula)):
        image = of_columns(columns[:, ::-1] / SAMPLING_A, atoms * brightness[place], 0.5)
        patterns.append(Pattern(template(image) / POLAR.area, power))
    return patterns


def of_columns(places_px, weight, width_A: float) -> np.ndarray:
    """An image of Gaussians at these places (y, x)."""
    laid = np.zeros((EDGE_PX, EDGE_PX))
    np.add.at(laid, tuple(places_px.astype(int).T), weight)
    return scipy.ndimage.gaussian_filter(laid, width_A / SAMPLING_A)


def evidence_of(named, owner: np.ndarray) -> np.ndarray:
    """Log evidence of each candidate, the mean of that of its patterns."""
    logs = named.log_evidence[0]
    of_owner = [logs[owner == k] for k in range(owner.max() + 1)]
    return np.array([scipy.special.logsumexp(v) - np.log(len(v)) for v in of_owner])


def atomagined(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    images, known = {}, {}
    for file in sorted(folder.glob("*.h5")):
        with h5py.File(file) as of:
            for name, path in IMAGES.items():
                images[file.stem, name] = np.asarray(of[f"haadf/{path}"], float)
            places_A = np.asarray(of["projection/full_coords"], float) * SAMPLING_A
            known[file.stem] = drawn_patterns(rng, places_A, of.attrs["chemical_formula"])
    others, rng = specimens.prototypes(), np.random.default_rng(0)
    while len(known) + len(others) < CANDIDATES:
        others[f"random {len(others)}"] = specimens.random_lattice(rng)
    known |= {name: [pattern(lattice, POLAR)] for name, lattice in others.items()}
    names = list(known)
    owner = np.repeat(np.arange(len(known)), [len(v) for v in known.values()])
    patterns = stacked([p for of in known.values() for p in of])
    first = stacked([of[0] for of in known.values()])
    right = {"right": 0, "by_cosine": 0}
    for (name, kind), image in images.items():
        seen = template(image)
        chance = scipy.special.softmax(evidence_of(compared(seen[None], patterns, POLAR), owner))
        best = int(np.argmax(chance))
        right["right"] += names[best] == name
        right["by_cosine"] += names[int(np.argmax(cosines(seen, first)))] == name
        row = {"file": name, "image": kind, "named": names[best], "of": len(names)}
        print(json.dumps(row | {"probability": round(float(chance[best]), 4)}), flush=True)
    print(json.dumps(right | {"of": len(images)}))


def made_up(rng: np.random.Generator, lattice: PlaneLattice, noisy: bool) -> np.ndarray:
    weight = np.asarray(lattice.weight) ** (rng.uniform(1.5, 2.0) / BRIGHTNESS)
    weight = weight * np.exp(0.15 * rng.standard_normal(len(weight)))
    shape = (EDGE_PX, EDGE_PX)
    turned = PlaneLattice(lattice.vectors_A * [1.0, rng.choice([-1.0, 1.0])], lattice.basis, weight)
    angle, offset = rng.uniform(0.0, np.pi), rng.uniform(0.0, 6.0, 2)
    places_px, weight = columns_px(turned, angle, shape, SAMPLING_A, offset)
    width_A = np.hypot(rng.uniform(0.35, 0.6), noisy * rng.uniform(0.0, 0.4))
    image = of_columns(places_px, weight, width_A)
    image /= image.mean()
    if not noisy:
        return image
    gradient = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), 40.0)
    gradient *= 0.2 / np.abs(gradient).max()
    image = (image + rng.uniform(0.5, 3.0)) * (1.0 + gradient)
    electrons = rng.uniform(3.0, 30.0) / image.mean()
    return rng.poisson(np.maximum(image, 0.0) * electrons) / electrons


def tried(rng: np.random.Generator, axes: list[Axis], count: int) -> None:
    known = [pattern(a.lattice, POLAR) for a in axes]
    # the cell is that of the crystal, which its columns alone need not show
    uniform = [
        Pattern(pattern(a.uniform, POLAR).amplitude, k.power)
        for a, k in zip(axes, known, strict=True)
    ]
    rows = []
    for i in range(count):
        elements, noisy = bool(i // 2 % 2), bool(i % 2)
        true = int(rng.integers(len(axes)))
        others = [j for j in rng.permutation(len(axes)) if axes[j].crystal != axes[true].crystal]
        among = [true, *others[: CANDIDATES - 1]]
        patterns = stacked([(known if elements else uniform)[j] for j in among])
        seen = template(made_up(rng, axes[true].lattice, noisy))
        named = compared(seen[None], patterns, POLAR)
        rows.append((elements, named.log_evidence[0], named.agreement[0], cosines(seen, patterns)))
    for elements in (True, False):
        logs, agreement, cosine = (
            np.stack([r[k] for r in rows if r[0] == elements]) for k in (1, 2, 3)
        )
        chance = np.asarray(jax.nn.softmax(logs, axis=1))
        best, wrong = chance.argmax(1), 1 + logs[:, 1:].argmax(1)
        each = np.arange(len(logs))
        row = {
            "elements": elements,
            "images": len(logs),
            "right": float(np.mean(best == 0)),
            "right_by_cosine": float(np.mean(cosine.argmax(1) == 0)),
            "probability": float(chance.max(1).mean()),
            "log_loss": float(-np.log(np.maximum(chance[:, 0], 1e-300)).mean()),
            "rivals": float(np.mean((chance > 0.05).sum(1) > 1)),
            "right_is_none": float(np.mean(agreement[each, best] < 0.5)),
            "wrong_is_none": float(np.mean(agreement[each, wrong] < 0.5)),
            "agreement_right": np.quantile(agreement[:, 0], (0.05, 0.5)).tolist(),
            "agreement_wrong": np.quantile(agreement[each, wrong], (0.5, 0.75, 0.9)).tolist(),
            "wrong_is_none_by_cosine": float(np.mean(cosine[:, 1:].max(1) < 0.7)),
        }
        rounded = jax.tree.map(lambda v: round(v, 3) if isinstance(v, float) else v, row)
        print(json.dumps(rounded), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path)
    parser.add_argument("--made-up", choices=["prototypes", "random"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=100)
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    if asked.made_up == "prototypes":
        tried(rng, prototypes(), asked.images)
    elif asked.made_up == "random":
        tried(rng, random_lattices(rng, 200), asked.images)
    elif asked.folder is not None:
        atomagined(asked.folder)
    else:
        parser.error("a folder of images, or --made-up")


if __name__ == "__main__":
    main()
