"""The thickness of each pixel from its low loss, in mean free paths."""

import jax.numpy as jnp
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.maps.each import one_pixel
from micjax.io import Field
from micjax.physics.spectra.plural import log_ratio_thickness
from micjax.problems.eels.setting import Energies
from micjax.problems.shared.map_conclusion import map_axes

NAME = "thickness_over_mean_free_path"
CUT_EV = 1.0, 8.0  # between these the zero-loss peak ends, where the mean spectrum is least


def thickness(problem: InverseProblem, x: Energies) -> Field | None:
    """t / lambda by the logarithm of the ratio of all electrons to those without loss (Egerton
    2011, eq. 5.1), with errors where the low loss has whole numbers, which are taken for counts;
    None without a low loss.

    What the axis of the low loss does not reach counts as nothing.
    """
    pixel, known = one_pixel(problem)
    cube = np.asarray(known.get("forward.low_loss", np.zeros((0,))), float)
    if not cube.size:
        return None
    step, zero = float(np.median(np.diff(np.asarray(x)))), pixel.forward.zero_channel
    loss = step * (np.arange(cube.shape[-1]) - zero)
    between = np.flatnonzero((loss >= CUT_EV[0]) & (loss <= CUT_EV[1]))
    if not between.size or loss[-1] < 2.0 * CUT_EV[1]:
        return None
    cut = between[cube.reshape(-1, len(loss)).mean(axis=0)[between].argmin()]
    total, peak = cube.sum(axis=-1), cube[..., : cut + 1].sum(axis=-1)
    value = np.asarray(log_ratio_thickness(jnp.asarray(total), jnp.asarray(peak)), float)
    errors = {}
    if (cube == np.round(cube)).all():  # the gain of a peak so sharp cannot be seen in it
        errors = {"errors": np.sqrt((total - peak) / (total * peak))}
    return Field(value, map_axes(problem.forward), "", NAME, errors)
