"""Whether a fit has converged: what is left to gain, and not that nothing was gained lately."""

from typing import NamedTuple

import numpy as np

from micjax.inference.checkpoint import StopReason
from micjax.inference.errors.laplace import Laplace
from micjax.inference.solve import Fit
from micjax.inference.solvers.first_order import Adam
from micjax.inference.stage import Search, Stage

LEFT = 0.05  # nats that may be left: values are then off by a third of their errors at most
BETTER = 2.0  # nats: what random points gain within one minimum is less
SWING = 1.0  # nats by which the last losses may lie above the best
RECENT = 50  # of them


class Ended(NamedTuple):
    """How a fit ended: whether it has converged, None where that is not known; and a sentence,
    if there is something to say."""

    converged: bool | None
    sentence: str


def how_it_ended(
    fit: Fit, last: Stage | Search, laplace: Laplace | None, explained: bool = True
) -> Ended:
    """By the curvature where it is known (the Newton decrement: Boyd and Vandenberghe 2004, sec.
    9.5.1), by the losses where it is not.

    **Arguments:**

    - `explained`: whether the model at the end of the fit explains the data: if not, a fit from one
        start may have come to the wrong minimum.
    """
    steps = f"after {fit.steps} steps"
    if fit.stop_reason is StopReason.NON_FINITE or fit.stop_reason is StopReason.INTERRUPTED:
        told = f"The fit stopped {steps}: {fit.stop_reason}{fit.fault and ', '}{fit.fault}."
        return Ended(False, told)
    if isinstance(last, Search):
        return Ended(None, "")
    every = laplace is not None and set(laplace.names) == set(fit.problem.unknowns())
    if laplace is not None and laplace.left > LEFT:
        off = np.sqrt(2.0 * laplace.left)
        of = "" if every else " in the unknowns that errors are stated of"
        return Ended(
            False,
            f"The fit stopped {steps} and has not converged{of}: the curvature promises "
            f"{laplace.left:.2g} nats more, and values may be off by {off:.2g} of their errors.",
        )
    if laplace is not None and laplace.better > BETTER:
        return Ended(
            False,
            f"The fit stopped {steps} in a minimum that is not the lowest: elsewhere values are "
            f"more likely by {laplace.better:.2g} nats. More starts may find it.",
        )
    if every and not explained and len(fit.starts_losses) < 2:
        return Ended(
            None,
            f"The fit came to a minimum {steps}. As it does not explain the data, another one may "
            "be lower: more starts would show it.",
        )
    if every:
        return Ended(True, f"The fit converged {steps}.")
    if (swing := _swing(fit)) > SWING:
        return Ended(
            False,
            f"The fit stopped {steps} and has not converged: its loss still swings by "
            f"{swing:.2g} nats.",
        )
    if fit.stop_reason in (StopReason.TOLERANCE, StopReason.CONVERGED):
        return Ended(True, f"The fit converged {steps}.")
    if fit.stop_reason is StopReason.STALLED:
        return Ended(
            False,
            f"The fit stopped {steps}: no step lowers the loss, which need not be its minimum.",
        )
    if isinstance(last.solver, Adam) and float(last.solver.decay_steps) <= last.steps:
        return Ended(None, f"The fit made its {fit.steps} steps, which became ever smaller.")
    return Ended(False, f"The fit used all of its {fit.steps} steps and may not have converged.")


def _swing(fit: Fit) -> float:
    """By how much the last losses lie above the best, of the best start."""
    losses = np.atleast_2d(fit.losses)
    own = losses[int(np.argmin(fit.starts_losses))] if len(losses) > 1 else losses[0]
    recent = own[np.isfinite(own)][-RECENT:]
    return float(np.median(recent) - np.min(own[np.isfinite(own)])) if len(recent) else 0.0
