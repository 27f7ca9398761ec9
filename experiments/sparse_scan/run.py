"""A scan from a quarter of its lines: which lines, and in which direction?

    python experiments/sparse_scan/run.py [--figure]

The amplitude image of PTO_Funakubo0004.h5 (DTMicroscope), whole and in quadrants, is measured along
lines of one pixel and filled in by biharmonic inpainting (scikit-image). A route takes the time of
`micjax.active.learner.cost.travel_s`: both axes have the same rate and move together, so a diagonal
of n pixels takes as long as a row of n. Every 4th row is the reference; all others get 60 % of its
time.

    rows        rows, wider apart
    down, up    diagonals: y grows with x, or falls
    told        a twentieth of the time for one corner "up", as much for another one "down"; to each
                a process with a lengthscale along and one across the lines is fitted, and the rest
                is scanned in the direction in which the image changes more

Prints a table, writes results.json beside this file.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import inpaint_biharmonic

from micjax import io
from micjax.active.gp import process as gp
from micjax.active.gp.evidence import fit_evidence

HERE = pathlib.Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data" / "afm" / "PTO_Funakubo0004.h5"
SHARE, REFERENCE = 0.6, 4  # of the time of every 4th row
PHASES = (0.125, 0.375, 0.625, 0.875)  # of the first line, in spacings
TRIAL = 0.05  # of the time of a route, in each of two directions
# across the lines of a family (y, x): one step to the next pixel of a line is perpendicular to it
ACROSS = {"rows": (1, 0), "down": (1, -1), "up": (1, 1)}
DIAGONALS = ("up", "down")


def images() -> dict[str, np.ndarray]:
    """The whole image and its quadrants, by name."""
    whole = np.asarray(io.read(DATA, "AmplitudeRetrace").data, float)
    n = len(whole) // 2
    rows, columns = (
        {"top": slice(n), "bottom": slice(n, None)},
        {
            "left": slice(n),
            "right": slice(n, None),
        },
    )
    parts = {f"{a} {b}": whole[r, c] for a, r in rows.items() for b, c in columns.items()}
    return {"whole": whole} | parts


# --- routes -------------------------------------------------------------------------------------


def number(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Which line of a family a pixel is on."""
    return np.tensordot(ACROSS[name], np.indices(shape), 1)


def family(name: str, allowed: np.ndarray, spacing: float, phase: float) -> list[np.ndarray]:
    """Lines of pixels [n, 2] of the allowed part of the image, `spacing` apart, there and back.

    `phase`, from 0 to 1: how much of a spacing lies before the first line.
    """
    pixels = np.argwhere(allowed)
    numbers = number(name, allowed.shape)[allowed]
    offsets = np.arange(numbers.min() + phase * spacing, numbers.max() + 0.5, spacing)
    order = np.lexsort((pixels[:, 1], pixels[:, 0], numbers))  # by line, then y, then x
    ends = [np.searchsorted(numbers[order], [int(c), int(c) + 1]) for c in offsets]
    lines = [pixels[order[a:b]] for a, b in ends if a < b]
    return [line[:: 1 if i % 2 == 0 else -1] for i, line in enumerate(lines)]


def seconds(lines: list[np.ndarray]) -> float:
    """Of the way along all lines, one after the other, at one pixel a second: as
    `micjax.active.learner.cost.travel_s`, without a compilation for each length."""
    return float(np.abs(np.diff(np.concatenate(lines), axis=0)).max(axis=1).sum())


def densest(
    name: str, allowed: np.ndarray, limit_s: float, phase: float, before: list | None = None
) -> list[np.ndarray]:
    """The lines nearest to each other that are done within the limit, after the lines `before`."""
    about = allowed.sum() / (limit_s - (seconds(before) if before else 0.0))  # lines alone
    for spacing in np.arange(0.9 * about, 1.5 * about, 0.02):
        there = family(name, allowed, spacing, phase)
        back = [line[::-1] for line in there[::-1]]
        lines = min(((before or []) + way for way in (there, back)), key=seconds)
        if seconds(lines) <= limit_s:
            return lines
    raise ValueError(f"no lines of {name} in {limit_s} s")


# --- direction ----------------------------------------------------------------------------------


def along_over_across(name: str, lines: list[np.ndarray], image: np.ndarray) -> float:
    """How much longer the image stays alike along the lines than across them."""
    pixels = np.concatenate(lines)
    across = np.array(ACROSS[name]) / np.linalg.norm(ACROSS[name])
    turned = np.stack([pixels @ (across[1], -across[0]), pixels @ across], axis=1)
    values = image[tuple(pixels.T)]
    values = (values - values.mean()) / values.std()
    side = np.ptp(turned, axis=0).max()  # one for both axes: lengthscales are fractions of it
    process = gp.process(turned.min(0), turned.min(0) + side)
    best = fit_evidence(process, *gp.buffered(turned, values)).problem
    along, across = np.asarray(best.values()["forward.kernel.lengthscale"])
    return float(along / across)


def told(image: np.ndarray, limit_s: float, phase: float) -> tuple[list[np.ndarray], dict]:
    """A corner along each diagonal, then the rest in the direction that is told by them."""
    everywhere = np.ones(image.shape, bool)
    left, begun, ratios = everywhere.copy(), [], {}
    for name in DIAGONALS:
        lines = densest(name, everywhere, limit_s, phase)
        count = next(i for i in range(1, len(lines)) if seconds(lines[:i]) > TRIAL * limit_s)
        begun += lines[:count]
        ratios[name] = along_over_across(name, lines[:count], image)
        left &= number(name, image.shape) > number(name, image.shape)[tuple(lines[count - 1][0])]
    then = min(ratios, key=ratios.get)
    return densest(then, left, limit_s, phase, begun), {"then": then, "along over across": ratios}


# --- measurement --------------------------------------------------------------------------------


def filled(image: np.ndarray, lines: list[np.ndarray]) -> np.ndarray:
    """The image from the pixels on the lines."""
    unknown = np.ones(image.shape, bool)
    unknown[tuple(np.concatenate(lines).T)] = False
    return inpaint_biharmonic(np.where(unknown, 0.0, image), unknown)


def PSNR_dB(image: np.ndarray, found: np.ndarray) -> float:
    return float(peak_signal_noise_ratio(image, found, data_range=np.ptp(image)))


def scans(image: np.ndarray, phase: float) -> dict[str, tuple[list[np.ndarray], dict]]:
    """Every route, by name."""
    everywhere = np.ones(image.shape, bool)
    reference = family("rows", everywhere, REFERENCE, phase)
    limit_s = SHARE * seconds(family("rows", everywhere, REFERENCE, 0.5))
    found = {"every 4th row": (reference, {})}
    for name in ACROSS:
        found[name] = densest(name, everywhere, limit_s, phase), {}
    found["told"] = told(image, limit_s, phase)
    return found


def results(image: np.ndarray) -> dict[str, list[dict]]:
    """What each route gives, phase by phase."""
    all_s = seconds(family("rows", np.ones(image.shape, bool), REFERENCE, 0.5))
    found: dict[str, list[dict]] = {}
    for phase in PHASES:
        for route, (lines, more) in scans(image, phase).items():
            one = {
                "PSNR_dB": round(PSNR_dB(image, filled(image, lines)), 3),
                "time": round(seconds(lines) / all_s, 4),
                "pixels": round(len(np.concatenate(lines)) / image.size, 4),
            }
            found.setdefault(route, []).append(one | more)
    return found


def table(by_image: dict[str, dict[str, list[dict]]]) -> str:
    rows = [
        f"| route | time, most | {' | '.join(by_image)} | mean of the quadrants |",
        "|---|---|" + "---|" * (len(by_image) + 1),
    ]
    for route in by_image["whole"]:
        runs = {name: found[route] for name, found in by_image.items()}
        means = {name: np.mean([r["PSNR_dB"] for r in own]) for name, own in runs.items()}
        cells = []
        for name, own in runs.items():
            spread = [r["PSNR_dB"] for r in own]
            cells.append(f"{means[name]:.2f} ({min(spread):.2f} to {max(spread):.2f})")
            if "then" in own[0]:
                chosen = [r["then"] for r in own]
                cells[-1] += f", down {chosen.count('down')} of {len(chosen)}"
        share = max(r["time"] for own in runs.values() for r in own)
        mean = np.mean([m for name, m in means.items() if name != "whole"])
        rows.append(f"| {route} | {100 * share:.1f} % | {' | '.join(cells)} | {mean:.2f} |")
    return "\n".join(rows)


def figure(image: np.ndarray) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    routes = {n: lines for n, (lines, _) in scans(image, 0.5).items()}
    canvas, axes = plt.subplots(2, 6, figsize=(17, 6.0), layout="constrained")
    low, high = np.quantile(image, [0.01, 0.99])
    axes[0, 0].imshow(image, vmin=low, vmax=high)
    axes[0, 0].set_title("all pixels")
    axes[1, 0].axis("off")
    reference_s = seconds(routes["every 4th row"])
    for column, (name, lines) in zip(axes.T[1:], routes.items(), strict=True):
        found = filled(image, lines)
        psnr = PSNR_dB(image, found)
        column[0].imshow(found, vmin=low, vmax=high)
        time = 100 * seconds(lines) / reference_s
        column[0].set_title(f"{name}: {time:.0f} % of the time, {psnr:.2f} dB", fontsize=9)
        seen = np.full(image.shape, np.nan)
        for line in lines:
            seen[tuple(line.T)] = image[tuple(line.T)]
        column[1].imshow(seen, vmin=low, vmax=high, interpolation="nearest")
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    canvas.savefig(HERE / "sparse_scan.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--figure", action="store_true", help="draw sparse_scan.png only")
    given = parser.parse_args()
    if given.figure:
        return figure(images()["top left"])
    found = {}
    for name, image in images().items():
        found[name] = results(image)
        print(name, json.dumps(found[name]), flush=True)
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
