"""Defocus and astigmatism of a STEM from a few images of an unknown object; and an autofocus by it.

    image_k = Poisson(dose (object * |probe(aberrations + setting_k)|^2))

The forward model and the law of the counts are those of `micjax.physics.electrons.phase_diversity`.
The posterior of the aberrations has several modes while the images are far from focus (one image
does not tell the sign of its defocus), so fits start from everywhere. `decide` plans the next
setting from the images so far, by their expected Fisher information, and says when to stop;
`autofocus` is the loop, and its `AutofocusRecord` replays to the same decisions.
"""

import jax
import numpy as np
import numpyro.distributions as dist

from micjax.core.problem import InverseProblem
from micjax.core.ranges import positive
from micjax.physics.electrons.phase_diversity import (
    KNOBS,
    Images,
    Probes,
    ProbeSeries,
    UnknownObject,
)
from micjax.problems.autofocus.policy import AutofocusRecord as AutofocusRecord
from micjax.problems.autofocus.policy import Decision as Decision
from micjax.problems.autofocus.policy import Rules as Rules
from micjax.problems.autofocus.policy import autofocus as autofocus
from micjax.problems.autofocus.policy import decide as decide
from micjax.problems.autofocus.posterior import NAMES
from micjax.problems.autofocus.posterior import PosteriorMode as PosteriorMode
from micjax.problems.autofocus.posterior import modes as modes
from micjax.problems.autofocus.posterior import series as series
from micjax.problems.autofocus.posterior import stages as stages
from micjax.problems.autofocus.twin import microscope as microscope


def problem(
    ny: int = 128,
    nx: int = 128,
    sampling_A: float = 0.625,
    energy_keV: float = 200.0,
    semiangle_mrad: float = 10.0,
    mean_counts: float = 50.0,
    C10_limit_A: float = 2500.0,
    C12_limit_A: float = 800.0,
) -> InverseProblem:
    """Defocus and two-fold astigmatism of a STEM, anywhere within limits.

    **Arguments:**

    - `ny`: lines of an image.
    - `nx`: pixels of a line.
    - `sampling_A`: pixel size; up to wavelength / (4 semiangle) resolves all that a probe can.
    - `energy_keV`: of the electrons.
    - `semiangle_mrad`: of convergence.
    - `mean_counts`: electrons counted per pixel.
    - `C10_limit_A`: largest defocus of either sign.
    - `C12_limit_A`: largest astigmatism along either axis.

    **Raises:** `ValueError` for numbers that are not positive.
    """
    positive(
        ny=ny,
        nx=nx,
        sampling_A=sampling_A,
        energy_keV=energy_keV,
        semiangle_mrad=semiangle_mrad,
        mean_counts=mean_counts,
        C10_limit_A=C10_limit_A,
        C12_limit_A=C12_limit_A,
    )
    law = UnknownObject(
        mean_counts,
        particles=1e5,
        corner_per_px=0.015,
        atoms=100.0,
        atom_px=0.5 / sampling_A,
        scatter=2.5,
        model_error=0.03,
    )
    # bounded priors: in the solver's coordinates every unknown is of the order of one
    return InverseProblem(
        Probes(dict.fromkeys(KNOBS, 0.0), sampling_A, energy_keV, semiangle_mrad, (ny, nx)),
        law,
        {
            "forward.aberrations_A.C10": dist.Uniform(-C10_limit_A, C10_limit_A),
            "forward.aberrations_A.C12a": dist.Uniform(-C12_limit_A, C12_limit_A),
            "forward.aberrations_A.C12b": dist.Uniform(-C12_limit_A, C12_limit_A),
            "noise.particles": dist.LogNormal(np.log(1e5), 4.0),
            "noise.corner_per_px": dist.LogNormal(np.log(0.015), 1.0),
            "noise.atoms": dist.LogNormal(np.log(100.0), 4.0),
            "noise.scatter": dist.Uniform(0.01, 4.0),
            # narrow: what shares nothing with the other images would be explained by anything
            "noise.model_error": dist.LogNormal(np.log(0.03), 0.5),
        },
    )


def example(key) -> tuple[InverseProblem, ProbeSeries, Images]:
    """Four images of gold particles, two as found and at 80 nm more, two near the focus."""
    found_A = {"C10": 900.0, "C12a": 250.0, "C12b": -150.0}
    seed = int(jax.random.randint(key, (), 0, 1 << 30))
    instrument = microscope(seed, found_A)
    settings_A = np.array([[0, 0, 0], [800, 0, 0], [-800, -200, 200], [-1000, -200, 100]], float)
    keys = jax.random.split(key, len(settings_A))
    images = [instrument.image(k, s) for k, s in zip(keys, settings_A, strict=True)]
    x, y = series(settings_A, images)
    return (
        problem(mean_counts=float(y[0].mean())).at(dict(zip(NAMES, found_A.values(), strict=True))),
        x,
        y,
    )
