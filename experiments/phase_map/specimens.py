"""Made-up polycrystals: the three sets of the table, and lattices that nothing was tuned on."""

import numpy as np
from ase.data import atomic_numbers

from micjax.physics.patches.polycrystal import PlaneLattice, Polycrystal, polycrystal
from micjax.problems.phase_map import palladium_selenides

SAMPLING_A = 0.3125
SHAPE = (512, 512)
SETS = ("A", "B", "C")


def third() -> PlaneLattice:
    """A square lattice about the size of PdSe's, columns as bright as Z^1.7."""
    pd, se = 46.0**1.7, 34.0**1.7
    places = [[0, 0], [0.5, 0.5], [0, 0.5], [0.5, 0]]
    places += [[0.19, 0.32], [0.81, 0.68], [0.32, 0.81], [0.68, 0.19]]
    return PlaneLattice(6.73 * np.eye(2), np.array(places, float), np.array(4 * [pd] + 4 * [se]))


def specimen(name: str, seed: int, electrons_per_px: float = 60.0) -> Polycrystal:
    """A: two phases, one angle each. B: two phases, eight grains at any angle. C: three phases,
    twelve grains, thickness that varies by 40 %, holes over 4 % of the image, lines off by 0.3
    pixels (rms)."""
    options = {
        "A": {"angles": "phase"},
        "B": {},
        "C": {"grains": 12, "thickness": 0.4, "holes": 0.04, "jitter_px": 0.3},
    }[name]
    lattices = palladium_selenides() + ([third()] if name == "C" else [])
    rng = np.random.default_rng([seed, ord(name)])
    return polycrystal(rng, lattices, SHAPE, electrons_per_px=electrons_per_px, **options)


def random_lattice(rng: np.random.Generator) -> PlaneLattice:
    """One of the five plane lattices, edges of 4 to 9 Å, one to four columns and their images under
    the rotation of a plane group, no two closer than 1.4 Å."""
    order = int(rng.choice([1, 2, 3, 4, 6]))
    a, b = rng.uniform(4.0, 9.0, 2)
    gamma = {1: rng.uniform(70, 110), 2: rng.choice([90.0, rng.uniform(70, 110)])}.get(
        order, 90.0 if order == 4 else 120.0
    )
    b = a if order in (3, 4, 6) else b
    turn = np.deg2rad(gamma)
    vectors = np.array([[a, 0.0], [b * np.cos(turn), b * np.sin(turn)]])
    angle = 2.0 * np.pi / order
    c, s = np.cos(angle), np.sin(angle)
    rotation = vectors @ np.array([[c, s], [-s, c]]) @ np.linalg.inv(vectors)
    wanted, basis, weight = int(rng.integers(1, 5)), [], []
    for _ in range(200):
        orbit = [rng.uniform(0.0, 1.0, 2)]
        for _ in range(order - 1):
            orbit.append(orbit[-1] @ rotation % 1.0)
        if _apart(np.array(basis + orbit), vectors) < 1.4:
            continue
        basis += orbit
        weight += len(orbit) * [float(rng.integers(8, 80)) ** 1.7]
        if len(basis) >= wanted:
            break
    return PlaneLattice(vectors, np.array(basis), np.array(weight))


def _apart(basis, vectors) -> float:
    """The smallest distance of two columns, around the cell."""
    cells = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(-1, 2)
    between = basis[:, None, None] - basis[None, :, None] + cells
    distance = np.linalg.norm(between @ vectors, axis=-1)
    distance[np.arange(len(basis)), np.arange(len(basis)), 4] = np.inf
    return float(distance.min())


def crystal_projection(symbol_places, vectors) -> PlaneLattice:
    """Columns of a crystal along the beam; atoms above each other add up."""
    columns: dict[tuple[float, float], float] = {}
    for symbol, x, y in symbol_places:
        key = (round(x % 1.0, 3), round(y % 1.0, 3))
        columns[key] = columns.get(key, 0.0) + float(atomic_numbers[symbol]) ** 1.7
    return PlaneLattice(
        np.asarray(vectors, float), np.array(list(columns)), np.array(list(columns.values()))
    )


def prototypes() -> dict[str, PlaneLattice]:
    """Well-known structures along a zone axis."""
    rutile = [("Ti", 0, 0), ("Ti", 0.5, 0.5), ("O", 0.305, 0.305), ("O", 0.695, 0.695)]
    rutile += [("O", 0.195, 0.805), ("O", 0.805, 0.195)]
    perovskite = [("Sr", 0, 0), ("Ti", 0.5, 0.5), ("O", 0.5, 0.5), ("O", 0.5, 0), ("O", 0, 0.5)]
    beside = [[1.0, 0.0], [-0.5, 0.75**0.5]]
    return {
        "rutile [001]": crystal_projection(rutile, 4.594 * np.eye(2)),
        "SrTiO3 [001]": crystal_projection(perovskite, 3.905 * np.eye(2)),
        "MoS2 [0001]": crystal_projection(
            [("Mo", 1 / 3, 2 / 3), ("S", 2 / 3, 1 / 3), ("S", 2 / 3, 1 / 3)],
            3.16 * np.array(beside),
        ),
        "wurtzite GaN [11-20]": crystal_projection(
            [("Ga", 0, 0), ("Ga", 0.5, 0.5), ("N", 0, 0.377), ("N", 0.5, 0.877)],
            np.diag([2.763, 5.19]),
        ),
        "silicon [110]": crystal_projection(
            [("Si", 0, 0), ("Si", 0.5, 0.5), ("Si", 0, 0.25), ("Si", 0.5, 0.75)],
            np.diag([3.84, 5.43]),
        ),
        "fluorite CeO2 [110]": crystal_projection(
            [("Ce", 0, 0), ("Ce", 0.5, 0.5)]
            + [("O", x, y) for x in (0.0, 0.5) for y in (0.25, 0.75)],
            np.diag([3.83, 5.41]),
        ),
        "gold [110]": crystal_projection([("Au", 0, 0), ("Au", 0.5, 0.5)], np.diag([2.88, 4.08])),
        "FeSe2 marcasite [001]": crystal_projection(
            [("Fe", 0, 0), ("Fe", 0.5, 0.5)]
            + [
                ("Se", 0.213, 0.369),
                ("Se", 0.787, 0.631),
                ("Se", 0.713, 0.131),
                ("Se", 0.287, 0.869),
            ],
            np.diag([4.80, 5.78]),
        ),
    }


def untuned(seed: int, jitter_px: float = 0.0, amorphous: float = 0.0) -> Polycrystal:
    """Two or three lattices, random ones and prototypes in turn, at random angles."""
    rng = np.random.default_rng([seed, 77])
    count = int(rng.integers(2, 4))
    known = list(prototypes().values())
    chosen = [known[i] for i in rng.permutation(len(known))[:count]]
    lattices = [random_lattice(rng) if (i + seed) % 2 else chosen[i] for i in range(count)]
    return polycrystal(
        rng, lattices, SHAPE, grains=4 * count, jitter_px=jitter_px, amorphous=amorphous
    )
