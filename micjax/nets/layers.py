"""What the networks are built of: convolutions without running statistics, conditions, resizing.

All of them take images `[..., y, x, channels]`. Norms are over groups of channels of one image, so
that a prediction depends on nothing else, and stays the same under `jit` and inside a density.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

GROUP = 8  # channels that are normalised together
BEGIN = jax.jit(nnx.initializers.lecun_normal(), static_argnums=(1, 2))  # LeCun et al. 1998


def conv(cin: int, cout: int, rngs: nnx.Rngs, size: int = 3, circular: bool = False) -> nnx.Conv:
    """A convolution that keeps the size of the image."""
    return nnx.Conv(
        cin,
        cout,
        (size, size),
        padding="CIRCULAR" if circular else "SAME",
        kernel_init=BEGIN,
        param_dtype=jnp.result_type(float),
        rngs=rngs,
    )


def norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Zero mean and unit variance over groups of about eight channels.

    **Raises:** `ValueError` for channels that are no multiple of eight.
    """
    if channels % GROUP:
        raise ValueError(f"{channels} channels: a multiple of {GROUP} is needed")
    return nnx.GroupNorm(
        channels, num_groups=channels // GROUP, param_dtype=jnp.result_type(float), rngs=rngs
    )


def in_bfloat16(network: nnx.Module) -> nnx.Module:
    """The same network, all of whose layers compute in 16 bits: what they are given and their
    weights are rounded. Means and variances of norms stay 32 bits, and so do the weights kept."""
    network = nnx.clone(network)
    for _, layer in nnx.iter_modules(network):
        if hasattr(layer, "param_dtype"):  # those of Flax that have weights
            layer.dtype = jnp.bfloat16
    return network


def zeroed(layer: nnx.Module) -> nnx.Module:
    """`layer` with all its weights at zero: a block that ends in it begins as the identity."""
    for path in ("kernel", "bias"):
        weight = getattr(layer, path)
        weight.set_value(jnp.zeros_like(weight.get_value()))
    return layer


class Condition(nnx.Module):
    """Scale and shift of each channel by a vector (feature-wise linear modulation, Perez 2018)."""

    def __init__(self, size: int, channels: int, rngs: nnx.Rngs):
        self.linear = zeroed(
            nnx.Linear(size, 2 * channels, param_dtype=jnp.result_type(float), rngs=rngs)
        )

    def __call__(
        self, h: Float[Array, "*b y x c"], vector: Float[Array, "*b d"]
    ) -> Float[Array, "*b y x c"]:
        scale, shift = jnp.split(self.linear(vector)[..., None, None, :], 2, axis=-1)
        return h * (1 + scale) + shift


class Block(nnx.Module):
    """h + conv(gelu(norm(conv(gelu(norm(h)))))), with the condition after the second norm."""

    def __init__(
        self, cin: int, cout: int, rngs: nnx.Rngs, condition: int = 0, circular: bool = False
    ):
        self.norm_1, self.conv_1 = norm(cin, rngs), conv(cin, cout, rngs, circular=circular)
        self.norm_2 = norm(cout, rngs)
        self.conv_2 = zeroed(conv(cout, cout, rngs, circular=circular))
        self.past = None if cin == cout else conv(cin, cout, rngs, size=1)
        self.condition = Condition(condition, cout, rngs) if condition else None

    def __call__(self, h: Float[Array, "*b y x c"], vector=None) -> Float[Array, "*b y x d"]:
        new = self.conv_1(nnx.gelu(self.norm_1(h)))
        new = self.norm_2(new)
        if self.condition is not None:
            new = self.condition(new, vector)
        return (h if self.past is None else self.past(h)) + self.conv_2(nnx.gelu(new))


def folded(h: Float[Array, "*b y x c"], by: int) -> Float[Array, "*b y2 x2 d"]:
    """Squares of `by` x `by` pixels as channels of one."""
    *batch, y, x, c = h.shape
    h = h.reshape(*batch, y // by, by, x // by, by, c)
    return jnp.moveaxis(h, -4, -3).reshape(*batch, y // by, x // by, by * by * c)


def unfolded(h: Float[Array, "*b y x d"], by: int) -> Float[Array, "*b y2 x2 c"]:
    """The inverse of `folded`."""
    *batch, y, x, d = h.shape
    h = h.reshape(*batch, y, x, by, by, d // by**2)
    return jnp.moveaxis(h, -3, -4).reshape(*batch, y * by, x * by, d // by**2)


def halved(h: Float[Array, "*b y x c"]) -> Float[Array, "*b y2 x2 c"]:
    """Means of squares of two by two pixels."""
    *batch, y, x, c = h.shape
    return h.reshape(*batch, y // 2, 2, x // 2, 2, c).mean(axis=(-4, -2))


def doubled(h: Float[Array, "*b y x c"]) -> Float[Array, "*b y2 x2 c"]:
    """Every pixel four times."""
    return jnp.repeat(jnp.repeat(h, 2, axis=-3), 2, axis=-2)
