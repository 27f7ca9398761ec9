"""NSGA-II on the looks of search.py. Runs without micjax.

    python experiments/phase_map/search.py --rewards --folder FOLDER    micjax's interpreter
    python experiments/phase_map/evolved.py FOLDER                      one that has pymoo

For each image in the folder it writes the order in which looks are tried, of several runs; then
`search.py --bayes` counts them.
"""

import argparse
import json
import pathlib

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import ElementwiseProblem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

OBJECTIVES = ("compactness", "explained")  # as in search.py
AXES = ("phases", "width", "sparsity")
POPULATION, EVALUATIONS, RUNS = 10, 1200, 20


class Looks(ElementwiseProblem):
    """The grid, by whole numbers; `order` is that in which looks were tried first."""

    def __init__(self, rows: list[dict]):
        self.values = np.array([[r[n] for n in OBJECTIVES] for r in rows])
        self.sizes = [len({r[axis] for r in rows}) for axis in AXES]
        self.order: list[int] = []
        highest = np.array(self.sizes) - 1
        super().__init__(n_var=len(AXES), n_obj=len(OBJECTIVES), xl=0, xu=highest, vtype=int)

    def _evaluate(self, x, out, *args, **kwargs):
        index = int(np.ravel_multi_index(tuple(x), self.sizes))
        if index not in self.order:  # who tries one again need not measure it again
            self.order.append(index)
        out["F"] = -self.values[index]


def evolved(rows: list[dict], seed: int) -> list[int]:
    """NSGA-II (Deb et al. 2002) with pymoo's settings for whole numbers."""
    looks, rounding = Looks(rows), {"repair": RoundingRepair(), "vtype": float}
    method = NSGA2(
        POPULATION, IntegerRandomSampling(), crossover=SBX(**rounding), mutation=PM(**rounding)
    )
    minimize(looks, method, ("n_eval", EVALUATIONS), seed=seed, verbose=False)
    return looks.order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    for file in sorted(parser.parse_args().folder.glob("[AB]-*[0-9].json")):
        if file.stem.endswith("nsga2"):
            continue
        orders = [evolved(json.loads(file.read_text()), seed) for seed in range(RUNS)]
        file.with_name(f"{file.stem}-nsga2.json").write_text(json.dumps(orders))
        print(file.stem, [len(order) for order in orders])


if __name__ == "__main__":
    main()
