"""How to look: rewards without the truth, and three ways to search by them.

    python experiments/phase_map/search.py --rewards [--seeds 100 ... 104]
    python experiments/phase_map/search.py --gradient [--seeds ...]
    python experiments/phase_map/search.py --bayes [--seeds ...]     # NSGA-II where pymoo is there

Appends to search.jsonl; --table prints it. Corners of 256 x 256 pixels of the sets A and B. A
look is the number of phases (2 to 5), the width of a Gaussian window (10) and the sparsity (10):
400 of them.
"""

import argparse
import json
import pathlib
import sys
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from micjax.physics.patches.unmixing.tuning import Look, PurePatches, as_seen, pure_patches
from micjax.physics.patches.windows import GaussianWindow

FILE = pathlib.Path(__file__).parent / "search.jsonl"
PIXELS, SUPPORT_PX, STEP_PX = 256, 64, 8
PHASES = (2, 3, 4, 5)
WIDTHS = np.geomspace(0.1, 0.6, 10)
SPARSITIES = np.linspace(0.0, 0.45, 10)
LOOKS = np.array([(k, w, s) for k in PHASES for w in WIDTHS for s in SPARSITIES])
BAND = 0.12, 0.75  # 1 / Å
NAMES = ("purity", "compactness", "balance", "separation", "explained")
OBJECTIVES = ("compactness", "explained")
INITIAL, BUDGET = 8, 30


class Specimen(NamedTuple):
    image: jax.Array
    truth: np.ndarray  # phase at the middles of the patches
    polar: Polar


def specimen(name: str, seed: int) -> Specimen:
    crystal = specimens.specimen(name, seed)
    local = LocalSpectra(GaussianWindow(0.4), SUPPORT_PX, STEP_PX, specimens.SAMPLING_A, 0.8)
    image = crystal.image[:PIXELS, :PIXELS]
    at = np.ix_(*(np.round(c).astype(int) for c in local.centres(image.shape)))
    image = jnp.asarray((image - image.mean()) / image.std(), jnp.float32)
    return Specimen(image, crystal.phase[:PIXELS, :PIXELS][at], Polar(local, 0.1, 24, 72))


def learnt(of: Specimen, phases: int, width: float, seed: int = 0) -> PurePatches:
    """What the templates are means of, at this width."""
    polar = eqx.tree_at(lambda p: p.local.window.width, of.polar, jnp.asarray(width, jnp.float32))
    rings = _rings(polar, of.image)
    rings = rings.reshape(-1, *rings.shape[2:])
    rng = np.random.default_rng(seed)
    learning = {"starts": 2, "trial_steps": 4, "steps": 12, "room": PHASES[-1]}
    templates = learn(rings, phases, rng, **learning).templates
    size = jnp.sqrt(jnp.sum(rings**2, axis=(1, 2), keepdims=True))
    return pure_patches(encode(rings / size, templates)[0], phases)


@eqx.filter_jit
def _rings(polar: Polar, image):
    return polar(polar.local(image))


def rewards_of(look: Look, of: Specimen, pure: PurePatches) -> tuple[dict, np.ndarray]:
    values, abundance = _rewards(jax.tree.map(jnp.float32, look), of.image, of.polar, pure)
    return {n: float(v) for n, v in values.items()}, np.asarray(abundance)


@eqx.filter_jit
def _rewards(look, image, polar, pure):
    abundance, explained = as_seen(look, image, polar, pure)
    measures = {n: getattr(rewards, n)(abundance) for n in NAMES[:-1]}
    return measures | {"explained": explained}, abundance


def grid(name: str, seed: int) -> list[dict]:
    """All looks: their rewards, and the adjusted Rand index that nobody knows."""
    of, rows, known = specimen(name, seed), [], {}
    for phases, width, sparsity in LOOKS:
        at = (int(phases), float(width))
        if at not in known:
            known = {at: learnt(of, *at)}
        values, abundance = rewards_of(Look(width, *BAND, sparsity), of, known[at])
        index = adjusted_rand_index(abundance.argmax(-1).ravel(), of.truth.ravel())
        rows.append(values | {"index": index})
    return rows


def by_rewards(name: str, seed: int) -> dict:
    """The rank correlation of each reward with the truth (Spearman 1904)."""
    rows = grid(name, seed)
    index = [r["index"] for r in rows]
    found = {n: float(scipy.stats.spearmanr([r[n] for r in rows], index)[0]) for n in NAMES}
    both = [r["compactness"] + r["explained"] for r in rows]
    found["compactness + explained"] = float(scipy.stats.spearmanr(both, index)[0])
    chosen = int(np.argmax(both))
    return found | {"best index": max(index), "index chosen": index[chosen]}


def by_gradient(name: str, seed: int, steps: int = 25) -> dict:
    """Width and sparsity for two phases, from a window that is too small."""
    of = specimen(name, seed)
    pure = learnt(of, 2, float(WIDTHS[4]))

    def reward(free):
        width, sparsity = jnp.exp(free[0]), 0.45 * jax.nn.sigmoid(free[1])
        look = Look(width, *map(jnp.float32, BAND), sparsity)
        abundance, explained = as_seen(look, of.image, of.polar, pure)
        return rewards.compactness(abundance) + explained

    value, slope = eqx.filter_jit(reward), eqx.filter_jit(jax.value_and_grad(reward))
    fine = [
        float(value(jnp.array([np.log(w), np.log(s / (0.45 - s))], jnp.float32)))
        for w in np.geomspace(0.1, 0.6, 20)
        for s in np.linspace(0.01, 0.44, 20)
    ]
    free = jnp.array([np.log(0.12), 0.0], jnp.float32)
    rule = optax.adam(0.15)
    state, reached = rule.init(free), []
    for _ in range(steps):
        now, gradient = slope(free)
        reached.append(float(now))
        change, state = rule.update(-gradient, state)
        free = optax.apply_updates(free, change)
    reached.append(float(value(free)))
    span = max(fine) - min(fine)
    return {
        "grid's best": max(fine),
        "reached": max(reached),
        "begun": reached[0],
        "missing of the grid's range (%)": 100.0 * (max(fine) - max(reached)) / span,
        "steps to within 2 %": next(
            (i for i, r in enumerate(reached) if r >= max(fine) - 0.02 * abs(max(fine))), None
        ),
    }


def by_bayes(name: str, seed: int) -> dict:
    """Evaluations until 95 % of the hypervolume of the grid: Bayesian, NSGA-II, at random."""
    values = np.array([[r[n] for n in OBJECTIVES] for r in grid(name, seed)])
    reference = values.min(axis=0)
    whole = hypervolume(values, reference)
    points = np.stack([LOOKS[:, 0], np.log(LOOKS[:, 1]), LOOKS[:, 2]], axis=1)
    found = {"front": len(pareto_front(values))}
    rng = np.random.default_rng(seed)
    orders = {"micjax": bayesian(points, values, reference, rng)}
    orders["at random"] = list(rng.permutation(len(values)))
    if (order := evolved(values, seed)) is not None:
        orders["NSGA-II"] = order
    for who, order in orders.items():
        shares = np.array(
            [_share(values[order[: n + 1]], reference, whole) for n in range(len(order))]
        )
        enough = np.flatnonzero(shares >= 0.95)
        found[f"evaluations, {who}"] = int(enough[0]) + 1 if len(enough) else None
        found[f"share after {BUDGET}, {who}"] = float(shares[min(BUDGET, len(shares)) - 1])
    return found


def _share(values, reference, whole: float) -> float:
    above = np.all(values > reference, axis=1).any()
    return hypervolume(values, reference) / whole if above else 0.0


def bayesian(points, values, reference, rng) -> list[int]:
    """Looks in the order in which they are tried: some at random, then by expected hypervolume."""
    order = list(rng.choice(len(points), INITIAL, replace=False))
    fits = [None, None]
    while len(order) < 2 * BUDGET:
        draws = []
        for i in range(2):
            seen = values[order, i]
            unit = max(float(seen.std()), 1e-9)
            law = gp.process(points.min(axis=0), points.max(axis=0), y_scale=1.0)
            data = buffered(points[order], (seen - seen.mean()) / unit)
            fits[i] = fit_evidence(law, *data, key=jax.random.key(len(order)), restarts=1)
            state = gp.condition(fits[i].problem, *data)
            key = jax.random.key(1000 * len(order) + i)
            draws.append(seen.mean() + unit * draw_values(state, key, 32, points))
        allowed = np.ones(len(points), bool)
        allowed[order] = False
        stacked = np.stack(draws, axis=-1)
        order += list(greedy_hypervolume(stacked, values[order], reference, allowed, 1))
    return [int(i) for i in order]


def evolved(values, seed: int, most: int = 400) -> list[int] | None:
    """Looks in the order in which NSGA-II (Deb et al. 2002, pymoo) tries new ones."""
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import ElementwiseProblem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
        from pymoo.optimize import minimize
    except ImportError:
        print("NSGA-II: pymoo is not there", file=sys.stderr)
        return None
    sizes = np.array([len(PHASES), len(WIDTHS), len(SPARSITIES)])
    order: list[int] = []

    class Grid(ElementwiseProblem):
        def __init__(self):
            super().__init__(n_var=3, n_obj=2, xl=0, xu=sizes - 1, vtype=int)

        def _evaluate(self, x, out, *args, **kwargs):
            index = int(np.ravel_multi_index(tuple(x), sizes))
            if index not in order:  # who tries one again need not measure it again
                order.append(index)
            out["F"] = -values[index]

    rounding = {"repair": RoundingRepair(), "vtype": float}
    method = NSGA2(10, IntegerRandomSampling(), crossover=SBX(**rounding), mutation=PM(**rounding))
    minimize(Grid(), method, ("n_eval", 10 * most), seed=seed, verbose=False)
    return order


KINDS = {"rewards": by_rewards, "gradient": by_gradient, "bayes": by_bayes}


def table() -> None:
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    for kind in KINDS:
        for name in sorted({r["set"] for r in rows}):
            own = {r["seed"]: r["found"] for r in rows if (r["kind"], r["set"]) == (kind, name)}
            if not own:
                continue
            print(f"{kind}, set {name}, seeds {sorted(own)}")
            for key in next(iter(own.values())):
                shown = [f[key] for f in own.values()]
                numbers = [v for v in shown if v is not None]
                print(f"  {key:40s} mean {np.mean(numbers):8.3f}  of {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind}", action="store_true")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(100, 105))
    parser.add_argument("--sets", nargs="+", default=("A", "B"))
    parser.add_argument("--out", default=str(FILE))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    for kind, work in KINDS.items():
        for name in asked.sets if getattr(asked, kind) else ():
            for seed in asked.seeds:
                row = {"kind": kind, "set": name, "seed": seed, "found": work(name, seed)}
                with open(asked.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    if asked.table:
        table()


if __name__ == "__main__":
    main()
