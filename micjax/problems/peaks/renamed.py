"""Which line of a truth is which of an estimate: lines that may be anywhere may change names."""

import jax.numpy as jnp
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.problems.peaks.number import told_apart


def renamed(truth: InverseProblem, estimate: InverseProblem) -> InverseProblem:
    """The truth with its lines called as those of the estimate, at each pixel in the order of their
    places; as it is where priors tell the lines apart."""
    pixel = truth.forward.pixel
    lines = pixel.names()
    of = "forward.pixel."
    if len(lines) < 2 or told_apart(
        lines, {n.removeprefix(of): p for n, p in truth.priors.items()}
    ):
        return truth
    true, best = truth.values(), estimate.values()

    def order(values) -> np.ndarray:
        return np.argsort(np.stack([values[f"{of}{n}.centre"] for n in lines], axis=-1), axis=-1)

    ours, theirs = order(best), order(true)
    out = {}
    kinds = [n.removeprefix(f"{of}{lines[0]}.") for n in true if n.startswith(f"{of}{lines[0]}.")]
    for kind in kinds:
        every = np.stack([true[f"{of}{n}.{kind}"] for n in lines], axis=-1)
        moved = np.empty_like(every)
        np.put_along_axis(moved, ours, np.take_along_axis(every, theirs, axis=-1), axis=-1)
        out |= {f"{of}{n}.{kind}": jnp.asarray(moved[..., i]) for i, n in enumerate(lines)}
    return truth.at(out)
