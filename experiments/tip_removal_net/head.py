"""A tip head before the network of `micjax.problems.tip`: both learn side by side."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blobs import EDGE_PX, TIP_PX, scan
from flax import nnx
from jaxtyping import Array, Bool, Float

from micjax.nets.encoder import ImageEncoder
from micjax.nets.train import Training
from micjax.nets.unet import UNet
from micjax.physics.tips.dilation import touching_tip_pixels
from micjax.physics.tips.evidence import noise_sigma_nm
from micjax.problems.tip.network import FEATURES, Example, estimated, loss, mean_near, sight

UNTOUCHED = 0.2  # of the weight of a tip pixel that touched


class Batch(NamedTuple):
    image: Float[Array, "b y x"]
    truth: Float[Array, "b y x"]
    tip: Float[Array, "b k k"]
    touching: Bool[Array, "b k k"]


class HeadAndFill(nnx.Module):
    """Scan -> tip, which pixels of it touched; then, with that tip, the surface."""

    def __init__(self, fill: UNet, rngs: nnx.Rngs):
        self.head = ImageEncoder(3, 2 * TIP_PX**2, width=16, depth=3, fold=2, rngs=rngs)
        self.fill = fill

    def tip(self, images: Float[Array, "b y x"]):
        """Heights below the apex, which stands in the middle, and log odds of contact."""
        spread = images.std(axis=(1, 2), keepdims=True)
        near = [jax.vmap(lambda i, w=w: i - mean_near(i, w))(images) for w in (5, 17)]
        level = images - images.mean(axis=(1, 2), keepdims=True)
        said = self.head(jnp.stack([level, *near], axis=-1) / spread[..., None])
        depth, odds = jnp.moveaxis(said.reshape(-1, TIP_PX, TIP_PX, 2), -1, 0)
        place = jnp.arange(TIP_PX) - TIP_PX // 2
        r = jnp.hypot(place[:, None], place[None, :]) / (TIP_PX // 2)
        return -spread * 2.0 * r * jax.nn.softplus(depth), odds

    def sights(self, images: Float[Array, "b y x"], tips: Float[Array, "b k k"]):
        tips = jax.lax.stop_gradient(tips)
        return jax.lax.map(lambda a: sight(a[0], a[1], noise_sigma_nm(a[0][None])), (images, tips))

    def surface(self, images: Float[Array, "b y x"]):
        return estimated(self.fill, self.sights(images, self.tip(images)[0]))


def head_loss(network: HeadAndFill, batch: Batch):
    tips, odds = network.tip(batch.image)
    spread = batch.image.std(axis=(1, 2), keepdims=True)
    weight = jnp.where(batch.touching, 1.0, UNTOUCHED)
    off = (weight * jnp.abs(tips - batch.tip) / spread).mean()
    signs = jnp.where(batch.touching, 1.0, -1.0)
    mask = jax.nn.softplus(-signs * odds).mean()
    fill = loss(network.fill, Example(network.sights(batch.image, tips), batch.truth))
    return fill + 5.0 * off + mask


def head_training(fill: UNet, examples: int = 16) -> Training:
    def draw(key, data):
        truth, clean, image, tip = jax.lax.map(scan, jax.random.split(key, examples))
        touching = jax.lax.map(lambda a: touching_tip_pixels(*a), (clean, tip))
        return Batch(image, truth, tip, touching)

    facts = {"edge_px": EDGE_PX, "features": FEATURES}
    return Training(HeadAndFill(fill, nnx.Rngs(1)), draw, head_loss, facts=facts)
