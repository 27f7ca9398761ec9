"""An inverse problem as an instrument: y ~ noise(forward(x)), x being where it stands.

What is true is known to benchmarks alone, in `Simulated.truth`.
"""

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from micjax.core.problem import InverseProblem, drawn_data
from micjax.instruments.base import Axis, Mode, Over, Record, check_over, check_target

Reads = Callable[[Mapping[str, float]], object]


class Simulated:
    """A twin whose one mode, "measure", draws from the noise model at the place it stands.

    **Arguments:**

    - `problem`: at its true values. A drift of the truth is another instrument around this one.
    - `axes`: what can be set, in the order in which `forward` takes it.
    - `key`: of the noise; every measurement has its own, decided by how many there were before.
    - `reads`: the x of the forward model from the readbacks by name. By default their values as
        one row `[1, d]`, or `[1]` for one axis.
    - `channel`, `unit`: of what is measured. `seconds`, `dose`: of one measurement.
    """

    def __init__(
        self,
        problem: InverseProblem,
        axes: Mapping[str, Axis],
        key: Array,
        *,
        reads: Reads | None = None,
        channel: str = "y",
        unit: str = "",
        seconds: float = 0.0,
        dose: float = 0.0,
    ):
        self._problem, self._key, self._reads = problem, key, reads or _row
        self.axes = dict(axes)
        self.modes = {"measure": Mode("point", {channel: unit}, seconds, dose)}
        self._channel, self._unit = channel, unit
        self._at = {n: 0.5 * (a.lo + a.hi) for n, a in self.axes.items()}
        self.count = 0  # measurements so far; set it to go on after a restart

    @property
    def truth(self) -> dict[str, np.ndarray]:
        """The true values of the unknowns, by name."""
        return {n: np.asarray(v) for n, v in self._problem.values().items()}

    def read(self) -> dict[str, float]:
        return dict(self._at)

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        self._at |= check_target(self.axes, target)
        return self.read()

    def acquire(self, mode: str, over: Over = None) -> Record:
        check_over(self.axes, self.modes, mode, over)
        begun = time.time()
        key = jax.random.fold_in(self._key, self.count)
        y = np.asarray(drawn_data(self._problem, self._reads(self._at), key))
        y = y[0] if y.ndim and len(y) == 1 else y  # one row was asked for
        self.count += 1
        dims = tuple(f"axis{i}" for i in range(y.ndim))
        return Record(
            {self._channel: y},
            {self._channel: dims},
            {self._channel: self._unit},
            {},
            self.read(),
            begun,
            time.time(),
        )

    def stop(self) -> None:
        pass


def _row(position: Mapping[str, float]) -> Array:
    values = jnp.asarray(list(position.values()), dtype=float)
    return values if len(position) == 1 else values[None]
