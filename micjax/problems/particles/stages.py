"""How `micjax.problems.particles` is solved: a network says what is an instance, means say what
contrast it has."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem
from micjax.inference.stage import Arrays, Search
from micjax.problems.particles.contrast import contrasts
from micjax.problems.particles.segmentation import (
    SURE,
    Segmentation,
    by_function,
    check_zoom,
    only_of_the_network,
    segmented,
    shipped,
    trusted_labels,
)


def stages(
    problem: InverseProblem,
    x: Int[Array, "1"],
    y: Float[Array, "h w"],
    *,
    zoom: float | None = None,
    least_score: float = SURE,
) -> list:
    """One search: instances, and their contrast.

    **Arguments:**

    - `zoom`: 0.25, 0.5, 1 or 2: pixels of the network for one of the image; all of them, each for
        what is of a fitting size, if it is not given.
    - `least_score`: of instances, 0 to 1.

    **Raises:** `ValueError` for another zoom, one at which the image is too small, and settings of
        the network where a function makes the labels.
    """
    other_score = None if least_score == SURE else least_score
    only_of_the_network(problem.forward.labels, zoom=zoom, least_score=other_score)
    if zoom is not None:
        check_zoom(zoom, problem.forward.signal.shape)
    work = partial(_proposed, zoom=zoom, least_score=least_score)
    return [Search(work, _with_signal, "instances")]


def _proposed(problem, x, y, key, report, *, zoom, least_score) -> Arrays:
    image, forward = np.asarray(y, float), problem.forward
    split = _split(forward, image, zoom, least_score)
    report(0.8, f"{len(split.score)} instances")
    contrast = contrasts(image, split.labels)
    return {
        "labels": split.labels,
        "score": split.score,
        "doubt": split.doubt,
        "zoom": split.zoom,
        "contrast": contrast.value,
        "contrast_sd": contrast.error,
        "signal": contrast.signal(split.labels),
        "background": contrast.background,
    }


def _split(forward, image, zoom, least_score) -> Segmentation:
    if forward.labels is not None:
        return by_function(trusted_labels(forward.labels), image)
    network = shipped(forward.net)
    return segmented(image, network, forward.polarity, zoom, least_score)


def _with_signal(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    names = ("signal", "background")
    return problem.at({f"forward.{n}": jnp.asarray(arrays[n], float) for n in names})
