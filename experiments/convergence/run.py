"""Is what is called converged at the minimum?

python experiments/convergence/run.py --seeds 100 105
"""

import argparse
import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from cases import Case, cases

from micjax import fit
from micjax.inference.runner import default_stages, run
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.starts.draw import draw_starts

KEY = jax.random.key(0)
LEFT = 0.1  # nats above the lowest minimum known: values are off by 0.45 of their errors


def lowest(case: Case, solution) -> float:
    """The best of fits from where the solution is and from 60 draws of the priors."""
    problem = solution.problem
    starts = draw_starts(KEY, problem, 61)
    best = fit(problem, case.x, case.y, LBFGS(), steps=300, starts=starts)
    return min(best.loss, solution.fit.loss)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs=2, type=int, default=(100, 101))
    chosen = parser.parse_args(arguments)
    counts: dict[str, list[tuple[bool | None, bool]]] = {}
    with jax.enable_x64(True):
        for seed in range(*chosen.seeds):
            for name, case in cases(seed).items():
                stages = default_stages(case.problem, case.x, case.y, **case.engine)
                solution = run(case.problem, case.x, case.y, stages, key=KEY)
                left = solution.fit.loss - lowest(case, solution)
                counts.setdefault(case.kind, []).append((solution.converged, left < LEFT))
                false = " FALSE" if solution.converged and left >= LEFT else ""
                print(f"{seed} {name:32s} {solution.converged!s:5} {left:10.3g}{false}", flush=True)
    print("\n| fits | at the lowest minimum | called converged | of these not there |")
    print("|---|---|---|---|")
    for kind, ended in counts.items():
        said = [there for converged, there in ended if converged]
        there = sum(t for _, t in ended)
        print(f"| {kind} | {there} of {len(ended)} | {len(said)} | {len(said) - sum(said)} |")


if __name__ == "__main__":
    main()
