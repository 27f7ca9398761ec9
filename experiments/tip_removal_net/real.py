"""The network on the 20 cases of `experiments/tip_removal`: three real surfaces and a rough one.

    python experiments/tip_removal_net/real.py --data FOLDER [--net FILE]

Scans and noise are those of that experiment, and so are the blind tips: radius, half-angle and
second apex as its results.jsonl tells them. Three of them had been reshaped pixel by pixel there;
here they are as they were before. Prints one JSON line a case; the last one has the means. PSNR
(dB) as there: 20 pixels from the border, after the best shift by whole pixels and without the mean
height.
"""

import argparse
import json
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np

from micjax.physics.tips.dilation import dilate, erode
from micjax.physics.tips.evidence import misfit, noise_sigma_nm
from micjax.physics.tips.shapes import Double
from micjax.problems.tip import aligned_error
from micjax.problems.tip.fill import network_of, surface_of
from micjax.problems.tip.network import BOUND_SIGMAS

BEFORE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "tip_removal" / "run.py"))
LINES = (BEFORE["HERE"] / "results.jsonl").read_text().splitlines()
EARLIER = {line["case"]: line for line in map(json.loads, LINES)}
MARGIN, best_shift = BEFORE["MARGIN"], BEFORE["best_shift"]
NUMBER = r"(-?[\d.e+-]+)"
SINGLE = re.compile(rf"radius {NUMBER} nm, half-angle {NUMBER} deg")
SECOND = re.compile(rf"apex at \(y {NUMBER}, x {NUMBER}\) nm, {NUMBER} nm lower")


def blind_tip(told: str, pixel_nm, y, sigma) -> jnp.ndarray:
    """The tip of a line of results.jsonl. Its apex may stand between pixels, which is not told
    there: of the four places the one that explains the scan best."""
    radius, angle = map(float, SINGLE.search(told).groups())
    second = SECOND.search(told)
    dy, dx, drop = map(float, second.groups()) if second else (0.0, 0.0, 1e9)
    reach, depth_nm = (
        np.round(np.hypot(dy, dx) / np.asarray(pixel_nm) / 2),
        1.05 * float(jnp.ptp(y)),
    )
    size = 25 if not second else 25 + 2 * int(reach.max())
    tried = []
    for half_y in (0.0, 0.5):
        for half_x in (0.0, 0.5):
            origin = tuple(np.array([half_y, half_x]) * pixel_nm)
            shape = Double(radius, angle, (dy, dx), drop, origin, pixel_nm=pixel_nm, size=size)
            tip = jnp.maximum(shape() - shape().max(), -depth_nm).astype(y.dtype)
            seen, floor, _ = misfit(y[None], tip, sigma, jax.random.key(0))
            tried.append((float(seen / floor), tip))
    return min(tried, key=lambda t: t[0])[1]


def psnr(estimate, truth) -> float:
    error = aligned_error(np.asarray(estimate)[None], truth[None], MARGIN)
    return float(10 * np.log10(np.ptp(truth) ** 2 / np.mean(error**2)))


def inside(surface, half, truth) -> float:
    """How often the intervals hold the truth, at the shift and the height that fit best."""
    dy, dx = best_shift(surface, truth)
    within = (slice(MARGIN, -MARGIN),) * 2
    moved, widths = (np.roll(a, (-dy, -dx), (0, 1))[within] for a in (surface, half))
    error = moved - truth[within]
    return float(np.mean(np.abs(error - error.mean()) <= widths))


def case(name: str, truth, pixel_nm, tip, key, network) -> dict:
    clean = np.asarray(dilate(jnp.asarray(truth), jnp.asarray(tip)))
    noise = np.asarray(jax.random.normal(jax.random.split(key, 3)[0], clean.shape))
    y = jnp.asarray((clean + 0.005 * np.ptp(truth) * noise).astype(np.float32))
    sigma = noise_sigma_nm(y[None])
    earlier = EARLIER[name]
    row = {"case": name, "scan": psnr(y, truth)}
    row |= {n: earlier[n] for n in ("villarrubia", "oracle", "known", "blind", "blind_erosion")}
    blind = blind_tip(earlier["tip"], pixel_nm, y, sigma)
    above = 0
    for what, heights in (("blind", blind), ("known", jnp.asarray(tip))):
        surface, half = surface_of(network, y, heights.astype(y.dtype), sigma)
        eroded = np.asarray(erode(y, heights.astype(y.dtype)))
        above += int((surface > eroded + 1.0001 * BOUND_SIGMAS * float(sigma)).sum())
        row |= {
            f"erosion, {what}": psnr(eroded, truth),
            f"network, {what}": psnr(surface, truth),
            f"inside, {what}": inside(surface, half, truth),
        }
    return row | {"above the bound": above}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="of the AFM scans")
    parser.add_argument("--net", help="weights other than those of micjax")
    given = parser.parse_args()
    network, rows, key = network_of(given.net), [], jax.random.key(0)
    for surface_name, (surface, pixel_nm) in BEFORE["surfaces"](given.data).items():
        for tip_name, kernel in BEFORE["tips"]().items():
            key = jax.random.fold_in(key, 1)
            tip = kernel * np.ptp(surface)
            rows.append(case(f"{surface_name}/{tip_name}", surface, pixel_nm, tip, key, network))
            shown = {n: v if isinstance(v, str) else round(v, 3) for n, v in rows[-1].items()}
            print(json.dumps(shown), flush=True)
    numbers = [n for n in rows[0] if n != "case"]
    means = {n: round(float(np.mean([r[n] for r in rows])), 3) for n in numbers}
    print(json.dumps({"mean": means}))


if __name__ == "__main__":
    main()
