"""The forward model of `micjax.problems.aberrations`: probes at their settings, each where the
stage has drifted to."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from micjax.core.problem import parameter
from micjax.physics.electrons import optics
from micjax.physics.electrons.phase_diversity import KNOBS, Images, ProbeSeries
from micjax.physics.electrons.stem import placed

FOUND = [n for n in optics.CARTESIAN if int(n[1]) <= 3]
NAMES = [f"forward.aberrations_A.{n}" for n in FOUND]


class DriftingProbes(eqx.Module):
    """|probe|^2 at each setting, adding up to 1, where the stage has taken it."""

    aberrations_A: dict[str, Float[Array, ""]] = eqx.field(
        converter=lambda values: {n: jnp.asarray(v, dtype=float) for n, v in values.items()}
    )
    drift_A: Float[Array, "images-1 2"] = parameter()  # (y, x), against the first image
    focal_spread_A: Float[Array, ""] = parameter()  # 1/e half-width
    sampling_A: Float[Array, ""] = parameter()
    energy_keV: Float[Array, ""] = parameter()
    semiangle_mrad: Float[Array, ""] = parameter()
    shape: tuple[int, int] = eqx.field(static=True)
    foci: int = eqx.field(static=True)

    def __call__(self, x: ProbeSeries) -> Images:
        wavelength_A = optics.wavelength_A(self.energy_keV)
        angles = optics.angles_mrad(self.shape, self.sampling_A, wavelength_A)
        foci_A, weights = optics.focal_nodes_A(self.focal_spread_A, self.foci)

        def at(setting_A, drift_A):
            added = dict(zip(KNOBS, setting_A, strict=True))
            total_A = {n: c + added.get(n, 0.0) for n, c in self.aberrations_A.items()}

            def of(focus_A):
                changed_A = {**total_A, "C10": total_A["C10"] + focus_A}
                wave = optics.probe(angles, self.semiangle_mrad, changed_A, wavelength_A)
                wave = placed(wave, drift_A[None], (self.sampling_A, self.sampling_A))[0]
                return wave.size * (wave.real**2 + wave.imag**2)

            return jnp.tensordot(weights.astype(drift_A.dtype), jax.vmap(of)(foci_A), 1)

        drifts_A = jnp.concatenate([jnp.zeros((1, 2)), self.drift_A])
        return x.present[:, None, None] * jax.vmap(at)(x.settings_A, drifts_A)
