"""The forward model of `micjax.problems.unmixing`: a matrix product."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import parameter


class MixedSpectra(eqx.Module):
    """The spectra of pixels: abundances times end members."""

    abundance: Float[Array, "p k"] = parameter()
    spectrum: Float[Array, "k f"] = parameter()
    known: Float[Array, "m f"] = parameter()  # the first end members, where some are known
    grid: tuple[int, int] = eqx.field(static=True)
    components: int = eqx.field(static=True)  # 0: as many as the data show, at most k
    pixel_nm: float | None = eqx.field(static=True)
    signal_start: float = eqx.field(static=True)
    signal_step: float = eqx.field(static=True)
    signal_unit: str = eqx.field(static=True)
    signal_name: str = eqx.field(static=True)

    def __call__(self, pixel: Int[Array, "n"]) -> Float[Array, "n f"]:
        return self.abundance[pixel] @ self.spectrum

    @property
    def signal(self) -> Float[np.ndarray, "f"]:
        """Where the channels are, in `signal_unit`."""
        return self.signal_start + self.signal_step * np.arange(self.spectrum.shape[1])
