"""How to look: rewards without the truth, and three ways to search by them.

    python experiments/phase_map/search.py --rewards --folder FOLDER [--seeds 100 ... 104]
    python experiments/phase_map/search.py --gradient [--seeds ...]
    python experiments/phase_map/evolved.py FOLDER                 # NSGA-II, where pymoo is there
    python experiments/phase_map/search.py --bayes --folder FOLDER [--seeds ...]

Appends to search.jsonl; --table prints it. Parts of 256 x 256 pixels of the sets A and B. A
look is the number of phases (2 to 5), the width of a Gaussian window (10) and the sparsity (10):
400 of them, whose rewards and adjusted Rand indices are kept in FOLDER, a file for each image. By
gradient two phases are sought, and the band is free as well.
"""

import argparse
import contextlib
import json
import pathlib
import sys
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import specimens

from micjax.active.acquire.hypervolume import greedy_hypervolume, hypervolume, pareto_front
from micjax.active.acquire.paths import draw_values
from micjax.active.gp import process as gp
from micjax.active.gp.evidence import fit_evidence
from micjax.active.gp.observed import buffered
from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.unmixing import rewards
from micjax.physics.patches.unmixing.agreement import adjusted_rand_index
from micjax.physics.patches.unmixing.equivariant import encode, learn
from micjax.physics.patches.unmixing.tuning import (
    Look,
    PurePatches,
    alternate_bands,
    as_seen,
    held_out_rings,
    pure_patches,
    rings_of,
    unmixed_rings,
)
from micjax.physics.patches.windows import GaussianWindow

FILE = pathlib.Path(__file__).parent / "search.jsonl"
PIXELS, SUPPORT_PX, STEP_PX = 256, 64, 8
PHASES = (2, 3, 4, 5)
WIDTHS = np.geomspace(0.1, 0.6, 10)
SPARSITIES = np.linspace(0.0, 0.45, 10)
LOOKS = np.array([(k, w, s) for k in PHASES for w in WIDTHS for s in SPARSITIES])
BAND = 0.12, 0.75  # 1 / Å
OF_MAPS = ("purity", "compactness", "balance", "separation")
NAMES = (*OF_MAPS, "explained", "held out", "seeds agree", "shifts agree")
TRUE_PHASES = 2  # of the sets A and B
# log of the width, both ends of the band (1 / Å) and sparsity: from, to, and steps of their grid
FREE = ((np.log(0.1), 0.1, 0.4, 0.0), (np.log(0.6), 0.3, 0.8, 0.45))
FINE = (10, 5, 5, 10)
SCREENED, CALLS = 5, 25  # widths that are tried first, and rewards (with gradients) in all
OBJECTIVES = ("compactness", "explained")
INITIAL, BUDGET, RUNS, MOST = 8, 30, 5, 120


class Specimen(NamedTuple):
    image: jax.Array
    shifted: jax.Array  # by half a step along both axes
    truth: np.ndarray  # phase at the middles of the patches
    polar: Polar


def specimen(name: str, seed: int) -> Specimen:
    """The part of an image of run.py in which the phases are most even: many a corner has one."""
    crystal = specimens.specimen(name, seed)
    local = LocalSpectra(GaussianWindow(0.4), SUPPORT_PX, STEP_PX, specimens.SAMPLING_A, 0.8)
    half = STEP_PX // 2
    begins = np.linspace(0, len(crystal.image) - PIXELS - half, 5).astype(int)

    def cut(values, y, x):
        return values[y : y + PIXELS, x : x + PIXELS]

    def evenness(at):
        return np.bincount(cut(crystal.phase, *at).ravel(), minlength=TRUE_PHASES).min()

    y, x = max(((y, x) for y in begins for x in begins), key=evenness)
    image = cut(crystal.image, y, x)
    both = (
        jnp.asarray((i - image.mean()) / image.std(), jnp.float32)
        for i in (image, cut(crystal.image, y + half, x + half))
    )
    middles = np.ix_(*(np.round(c).astype(int) for c in local.centres(image.shape)))
    return Specimen(*both, cut(crystal.phase, y, x)[middles], Polar(local, 0.1, 24, 72))


def learnt(rings: jax.Array, phases: int, seed: int = 0) -> PurePatches:
    """What the templates are means of."""
    rings = rings.reshape(-1, *rings.shape[2:])
    rng = np.random.default_rng(seed)
    learning = {"sample": 300, "starts": 2, "trial_steps": 4, "steps": 12, "room": PHASES[-1]}
    templates = learn(rings, phases, rng, **learning).templates
    size = jnp.sqrt(jnp.sum(rings**2, axis=(1, 2), keepdims=True))
    return pure_patches(encode(rings / size, templates)[0], phases)


@eqx.filter_jit
def rings_at(width: float, image: jax.Array, polar: Polar) -> jax.Array:
    return rings_of(jnp.asarray(width, jnp.float32), image, polar)


@eqx.filter_jit
def _rewards_of_all(sparsities, rings, polar, pure) -> tuple[dict, jax.Array]:
    """Of all sparsities at one width and number of phases.

    `rings` of the image and of the shifted one; `pure` as learnt from the image, with another
    seed, without the held-out bands, and from the shifted image.
    """
    held = jnp.asarray(alternate_bands(polar.radii))

    def of_one(sparsity):
        look = Look(1.0, *map(jnp.float32, BAND), sparsity)  # the width is in the rings
        seen = unmixed_rings(look, rings[0], polar, pure[0])
        other = unmixed_rings(look, rings[0], polar, pure[1])
        beside = unmixed_rings(look, rings[1], polar, pure[3])
        found = {n: getattr(rewards, n)(seen.abundance) for n in OF_MAPS}
        found["explained"] = seen.explained
        found["held out"] = held_out_rings(look, rings[0], polar, pure[2], held)
        found["seeds agree"] = rewards.agreement(seen.abundance, other.abundance)
        found["shifts agree"] = rewards.shift_agreement(seen.abundance, beside.abundance)
        return found, seen.abundance

    return jax.vmap(of_one)(sparsities)


def at_all_sparsities(of: Specimen, phases: int, width: float) -> list[dict]:
    rings = [rings_at(width, image, of.polar) for image in (of.image, of.shifted)]
    seen = jnp.where(jnp.asarray(alternate_bands(of.polar.radii))[:, None], 0.0, rings[0])
    learning = ((rings[0], 0), (rings[0], 1), (seen, 0), (rings[1], 0))
    pure = [learnt(of_rings, phases, seed) for of_rings, seed in learning]
    values, maps = _rewards_of_all(jnp.asarray(SPARSITIES, jnp.float32), rings, of.polar, pure)
    truth = of.truth.ravel()
    index = [adjusted_rand_index(m.argmax(-1).ravel(), truth) for m in np.asarray(maps)]
    look = {"phases": phases, "width": width}
    return [
        look
        | {"sparsity": float(s), **{n: float(v[i]) for n, v in values.items()}, "index": index[i]}
        for i, s in enumerate(SPARSITIES)
    ]


def grid(name: str, seed: int, folder: pathlib.Path) -> list[dict]:
    """All looks in the order of LOOKS: their rewards, and the adjusted Rand index that nobody
    knows. Read from the folder, where they have been tried before."""
    file = folder / f"{name}-{seed}.json"
    if not file.exists():
        of = specimen(name, seed)
        pairs = [(k, float(w)) for k in PHASES for w in WIDTHS]
        rows = [row for pair in pairs for row in at_all_sparsities(of, *pair)]
        file.write_text(json.dumps(rows))
    return json.loads(file.read_text())


def by_rewards(name: str, seed: int, folder: pathlib.Path) -> dict:
    """The rank correlation of each reward with the truth (Spearman 1904), over all looks and over
    those of the right number of phases, and the look that it likes best."""
    rows = grid(name, seed, folder)
    index = np.array([r["index"] for r in rows])
    right = np.array([r["phases"] == TRUE_PHASES for r in rows])
    values = {n: np.array([r[n] for r in rows]) for n in NAMES}
    values["compactness + explained"] = values["compactness"] + values["explained"]
    found = {"best index": float(index.max()), "mean index": float(index.mean())}
    for n, v in values.items():
        found[n] = float(scipy.stats.spearmanr(v, index)[0])
        found[f"{n}, right number"] = float(scipy.stats.spearmanr(v[right], index[right])[0])
        chosen = rows[int(v.argmax())]
        found |= {f"{n}, {of} chosen": chosen[of] for of in ("index", "phases", "width")}
    return found


# --- by gradient ---------------------------------------------------------------------------------


def look_at(place) -> Look:
    """From the unit cube of the log of the width, both ends of the band and the sparsity."""
    lower, upper = (jnp.asarray(v, jnp.float32) for v in FREE)
    log_width, *others = lower + (upper - lower) * place
    return Look(jnp.exp(log_width), *others)


@eqx.filter_jit
@eqx.filter_value_and_grad
def _reward(place, image, polar, pure):
    seen = as_seen(look_at(place), image, polar, pure)
    return rewards.compactness(seen.abundance) + seen.explained


@eqx.filter_jit
def _rewards_and_labels(places, rings, polar, pure):
    """Of places of one width, those of one band in a row."""

    def of_band(places):
        looks = jax.vmap(look_at)(places)
        band = jax.tree.map(lambda v: v[0], looks)

        def of_one(l1):  # correlations are those of the band
            seen = unmixed_rings(band._replace(l1=l1), rings, polar, pure)
            reward = rewards.compactness(seen.abundance) + seen.explained
            return reward, jnp.argmax(seen.abundance, axis=-1)

        return jax.vmap(of_one)(looks.l1)

    return jax.lax.map(of_band, places)


def fine_grid(of: Specimen, pure: PurePatches) -> tuple[np.ndarray, np.ndarray]:
    """Reward and adjusted Rand index of each look of a grid of all that is free."""
    across = [np.linspace(0.0, 1.0, n) for n in FINE]
    values, index, truth = [], [], of.truth.ravel()
    for width in across[0]:
        places = np.stack(np.meshgrid([width], *across[1:], indexing="ij"), -1)
        places = jnp.asarray(places.reshape(-1, FINE[-1], 4), jnp.float32)
        rings = rings_at(float(look_at(places[0, 0]).width), of.image, of.polar)
        some, labels = _rewards_and_labels(places, rings, of.polar, pure)
        values.append(np.asarray(some).ravel())
        labels = np.asarray(labels).reshape(-1, truth.size)
        index += [adjusted_rand_index(row, truth) for row in labels]
    return np.concatenate(values), np.array(index)


def climbed(of: Specimen, pure: PurePatches) -> list[tuple[float, np.ndarray]]:
    """Rewards and places in the order in which they were tried, each with its gradient.

    A few widths first, as the reward has a maximum of its own at windows so narrow that no template
    fits; then from the best of them L-BFGS within the box (Byrd et al. 1995).
    """
    known: dict[tuple, tuple[float, np.ndarray]] = {}

    def downhill(place):
        if tuple(place) not in known:
            if len(known) == CALLS:
                raise StopIteration
            value, slope = _reward(jnp.asarray(place, jnp.float32), of.image, of.polar, pure)
            known[tuple(place)] = -float(value), -np.asarray(slope, float)
        return known[tuple(place)]

    for width in np.linspace(0.0, 1.0, SCREENED):
        downhill(np.array([width, 0.5, 0.5, 0.5]))
    start = min(known, key=lambda place: known[place][0])
    with contextlib.suppress(StopIteration):
        scipy.optimize.minimize(
            downhill, start, jac=True, method="L-BFGS-B", bounds=4 * [(0.0, 1.0)]
        )
    return [(-value, np.array(place)) for place, (value, _) in known.items()]


def by_gradient(name: str, seed: int, folder: pathlib.Path | None) -> dict:
    """Width, band and sparsity for two phases, beside a grid of them and looks at random."""
    of = specimen(name, seed)
    pure = learnt(rings_at(float(WIDTHS[4]), of.image, of.polar), TRUE_PHASES)
    values, index = fine_grid(of, pure)
    tried = climbed(of, pure)
    best, least, reached = values.max(), values.min(), np.array([t[0] for t in tried])
    rng = np.random.default_rng(seed)
    drawn = np.array([rng.choice(values, CALLS, replace=False).max() for _ in range(1000)])
    look = look_at(jnp.asarray(tried[int(reached.argmax())][1]))
    labels = np.asarray(as_seen(look, of.image, of.polar, pure).abundance).argmax(-1)

    def calls_to(share):
        return next((i + 1 for i, r in enumerate(reached) if r >= (1.0 - share) * best), None)

    found = {
        "grid's best": best,
        "grid's least": least,
        "share of the grid within 2 %": np.mean(values >= 0.98 * best),
        "reached": reached.max(),
        "missing (%)": 100.0 * (best - reached.max()) / best,
        "missing of the grid's range (%)": 100.0 * (best - reached.max()) / (best - least),
        "at random: missing of the range (%)": 100.0 * np.mean(best - drawn) / (best - least),
        "at random: share of runs within 2 %": np.mean(drawn >= 0.98 * best),
        "at random: share of runs within 0.2 %": np.mean(drawn >= 0.998 * best),
        "index, reached": adjusted_rand_index(labels.ravel(), of.truth.ravel()),
        "index, grid's best reward": index[values.argmax()],
        "index, best of the grid": index.max(),
    }
    found |= dict(zip(("width", "k_min_perA", "k_max_perA", "sparsity"), look, strict=True))
    counts = {f"calls to within {100 * s:g} %": calls_to(s) for s in (0.02, 0.002)}
    return {n: float(v) for n, v in found.items()} | {"calls": len(tried)} | counts


# --- by hypervolume ------------------------------------------------------------------------------


def by_bayes(name: str, seed: int, folder: pathlib.Path) -> dict:
    """Evaluations until 95 % and 99 % of the hypervolume of the grid: Bayesian, NSGA-II, at random.

    The reference is the least of each objective on the grid; for `ends` it is the corner of the
    ends of the front, so that only what lies between them counts.
    """
    values = np.array([[r[n] for n in OBJECTIVES] for r in grid(name, seed, folder)])
    reference, front = values.min(axis=0), pareto_front(values)
    points = np.stack([LOOKS[:, 0], np.log(LOOKS[:, 1]), LOOKS[:, 2]], axis=1)
    rngs = [np.random.default_rng([seed, run]) for run in range(RUNS)]
    orders = {"micjax": [bayesian(points, values, reference, rng) for rng in rngs]}
    file = folder / f"{name}-{seed}-nsga2.json"
    if file.exists():
        orders["NSGA-II"] = json.loads(file.read_text())
    else:
        print(f"NSGA-II: {file} is not there (evolved.py)", file=sys.stderr)
    rng = np.random.default_rng(seed)
    orders["at random"] = [rng.permutation(len(values)) for _ in range(200)]
    found = {"front": len(front)}
    for which, floor, wanted in (
        ("", reference, (0.95, 0.99)),
        (", ends", values[front].min(axis=0), (0.95,)),
    ):
        whole = hypervolume(values, floor)
        for who, runs in orders.items():
            shares = np.array([volumes(values[order], floor) for order in runs]) / whole
            for share in wanted:
                there = shares >= share
                counts = np.where(there.any(axis=1), 1 + there.argmax(axis=1), MOST + 1)
                # of a run that stops earlier nothing is known
                last = BUDGET if who == "micjax" else MOST
                median = float(np.median(counts))
                found[f"to {share:.0%}{which}, {who}"] = median if median <= last else None
                within = float(np.mean(counts <= BUDGET))
                found[f"runs at {share:.0%}{which} within {BUDGET}, {who}"] = within
            found[f"share after {BUDGET}{which}, {who}"] = float(shares[:, BUDGET - 1].mean())
    return found


def volumes(values, reference) -> list[float]:
    """The hypervolume after each evaluation, as far as `MOST` of them."""
    found = []
    for n in range(1, MOST + 1):
        above = np.all(values[:n] > reference, axis=1)
        found.append(hypervolume(values[:n], reference) if above.any() else 0.0)
    return found


def bayesian(points, values, reference, rng) -> list[int]:
    """Looks in the order in which they are tried: some at random, then by expected hypervolume."""
    order = list(rng.choice(len(points), INITIAL, replace=False))
    while len(order) < BUDGET:
        draws = []
        for i in range(2):
            seen = values[order, i]
            unit = max(float(seen.std()), 1e-9)
            law = gp.process(points.min(axis=0), points.max(axis=0), y_scale=1.0)
            data = buffered(points[order], (seen - seen.mean()) / unit)
            fit = fit_evidence(law, *data, key=jax.random.key(len(order)), restarts=1)
            state = gp.condition(fit.problem, *data)
            key = jax.random.key(1000 * len(order) + i)
            draws.append(seen.mean() + unit * draw_values(state, key, 32, points))
        allowed = np.ones(len(points), bool)
        allowed[order] = False
        stacked = np.stack(draws, axis=-1)
        order += list(greedy_hypervolume(stacked, values[order], reference, allowed, 1))
    return [int(i) for i in order]


KINDS = {"rewards": by_rewards, "gradient": by_gradient, "bayes": by_bayes}


def table() -> None:
    """Of each figure the mean of the images, the least and the largest, and how many have it."""
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    for kind, name in ((k, n) for k in KINDS for n in sorted({r["set"] for r in rows})):
        own = {r["seed"]: r["found"] for r in rows if (r["kind"], r["set"]) == (kind, name)}
        if not own:
            continue
        print(f"{kind}, set {name}, seeds {sorted(own)}")
        for key in next(iter(own.values())):
            have = [f[key] for f in own.values() if f[key] is not None]
            said = f"{np.mean(have):8.3f} ({min(have):.3f} to {max(have):.3f})" if have else ""
            print(f"  {key:42s} {said}  in {len(have)} of {len(own)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind}", action="store_true")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(100, 105))
    parser.add_argument("--sets", nargs="+", default=("A", "B"))
    parser.add_argument("--folder", type=pathlib.Path, help="where the rewards of looks are kept")
    parser.add_argument("--out", default=str(FILE))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if (asked.rewards or asked.bayes) and asked.folder is None:
        parser.error("--rewards and --bayes need a --folder")
    for kind, work in KINDS.items():
        for name in asked.sets if getattr(asked, kind) else ():
            for seed in asked.seeds:
                row = {
                    "kind": kind,
                    "set": name,
                    "seed": seed,
                    "found": work(name, seed, asked.folder),
                }
                with open(asked.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    if asked.table:
        table()


if __name__ == "__main__":
    main()
