"""Forward models made of named parts: sums, products, convolutions.

    SumOf({"peak": GaussianLine(1.0, 0.0, 0.5), "background": StraightLine(0.1, 0.0)})

The parameters of an inverse problem with this forward model are `forward.peak.centre` and so on.
"""

from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from micjax.core.problem import parameter
from micjax.physics.spectra.scales import Priors, under

Component = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class _Composed:
    """Named parts. A PyTree whose paths are the names of the parts, with no word before them."""

    def __init__(self, parts: Mapping[str, Component]):
        """**Raises:** `ValueError` for no parts, or a name that is no identifier."""
        if not parts:
            raise ValueError(f"{type(self).__name__}: there are no parts")
        for name in parts:
            if not str(name).isidentifier():
                raise ValueError(f"part {name!r}: the name must be an identifier, such as 'peak'")
        self.parts = dict(parts)

    def __getattr__(self, name: str) -> Component:
        parts = self.__dict__.get("parts", {})
        if name not in parts:
            raise AttributeError(f"no part {name!r}; there are {', '.join(parts)}")
        return parts[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.parts})"

    def priors(self, x: ArrayLike, y: ArrayLike) -> Priors:
        """Those of the parts, by `part.field`; `under("forward", ...)` puts the forward model's
        name before them. A part without `priors` has none: it is known."""
        named = [
            under(name, part.priors(x, y))
            for name, part in self.parts.items()
            if hasattr(part, "priors")
        ]
        return {name: prior for priors in named for name, prior in priors.items()}

    def tree_flatten_with_keys(self):
        keys = tuple(self.parts)
        return [(jax.tree_util.GetAttrKey(k), v) for k, v in self.parts.items()], keys

    def tree_flatten(self):
        return tuple(self.parts.values()), tuple(self.parts)

    @classmethod
    def tree_unflatten(cls, keys, children):
        # JAX puts placeholders into trees, which no check may refuse
        made = object.__new__(cls)
        made.parts = dict(zip(keys, children, strict=True))
        return made


@jax.tree_util.register_pytree_with_keys_class
class SumOf(_Composed):
    """The sum of its parts at every x."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        first, *others = self.parts.values()
        total = first(x)
        for part in others:
            total = total + part(x)
        return total


class KnownShape(eqx.Module):
    """So many `counts`, or any other amount, of a spectrum that is known on this axis."""

    counts: Float[Array, ""] = parameter()
    shape: Float[Array, " n"] = parameter()

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.counts * self.shape


class References(eqx.Module):
    """A mixture of known spectra, seen with a drift of the axis and a Gaussian resolution.

        y = sum_k amounts_k (spectrum_k moved by `shift`, folded with a Gaussian of `fwhm`)

    By FFT, exact for any shift (Bracewell 2000, ch. 6).

    **Arguments:**

    - `amounts`: in units of y where a spectrum is 1.
    - `shift`, `fwhm`: in units of the axis; positive shifts move to larger x.
    - `spectra`: `[k, n + 2 margin]`: on the axis continued by `margin` channels on either side,
        which are to be more than the shift and the resolution reach.
    - `step`: of the axis.
    """

    amounts: Float[Array, " k"] = parameter()
    shift: Float[Array, ""] = parameter()
    fwhm: Float[Array, ""] = parameter()
    spectra: Float[Array, "k m"] = parameter()
    step: Float[Array, ""] = parameter()

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """**Raises:** `ValueError` for an axis that is not shorter by an even number."""
        length, margin = self.spectra.shape[-1], (self.spectra.shape[-1] - x.size) // 2
        if margin < 1 or x.size + 2 * margin != length:
            raise ValueError(
                f"references of {length} channels for {x.size}: longer by an even number is needed"
            )
        mixture = self.amounts @ self.spectra
        # turned back on itself: no jump where the ends meet
        even = jnp.concatenate([mixture, mixture[::-1]])
        omega = 2.0 * np.pi * jnp.fft.rfftfreq(2 * length).astype(x.dtype) / self.step
        sigma = self.fwhm / np.sqrt(8.0 * np.log(2.0))
        seen = jnp.exp(-0.5 * (sigma * omega) ** 2 - 1j * omega * self.shift)
        return jnp.fft.irfft(jnp.fft.rfft(even) * seen, 2 * length)[margin : margin + x.size]


@jax.tree_util.register_pytree_with_keys_class
class ProductOf(_Composed):
    """The product of its parts at every x, as a spectrum behind an absorber."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        first, *others = self.parts.values()
        total = first(x)
        for part in others:
            total = total * part(x)
        return total


@jax.tree_util.register_pytree_with_keys_class
class Convolved(_Composed):
    """A `component` seen with a measured resolution: the `kernel` on channels of the axis.

    Direct summation, for kernels of tens of channels; `plural.with_low_loss` takes long ones.

    **Arguments:**

    - `component`: what is convolved.
    - `kernel`: an odd number of samples at the spacing of the axis, the origin in the middle; it is
        normalised to a sum of 1. Beyond the axis the component is taken where it is.
    - `name`: of the component in the names of parameters.
    """

    def __init__(
        self, component: Component, kernel: ArrayLike | Sequence[float], name: str = "component"
    ):
        """**Raises:** `ValueError` for an even number of samples."""
        kernel = jnp.asarray(kernel, float)
        if kernel.ndim != 1 or kernel.size % 2 == 0:
            raise ValueError(f"the kernel has shape {kernel.shape}; an odd number is needed")
        super().__init__({name: component, "kernel": kernel})

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        component, kernel = self.parts.values()
        half = kernel.size // 2
        # the component is a function: it is known beyond the ends of the axis too
        step = x[1:] - x[:-1]
        before = x[0] - step[0] * jnp.arange(half, 0, -1)
        after = x[-1] + step[-1] * jnp.arange(1, half + 1)
        wide = component(jnp.concatenate([before, x, after]))
        return jnp.convolve(wide, kernel / jnp.sum(kernel), mode="valid")
