"""Tip removal on four surfaces and five tips, with the tip known and unknown.

    python experiments/tip_removal/run.py --data ../shared/data/afm [--cases PTO_Funakubo0004/r0.2]

The surfaces are three real AFM scans taken as the truth and a simulated rough one; the tips are
those of the hackathon's simulator (DTMicroscope, 25 x 25 Gaussian kernels scaled by the range of
the image); 0.5 % noise. Prints one JSON line a case and appends it to results.jsonl beside this
file; `--table` prints the table of all results there.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import micjax
from micjax.io import read
from micjax.physics.tips.dilation import dilate, erode
from micjax.physics.tips.evidence import misfit, noise_sigma_nm
from micjax.problems import tip as problem_tip
from micjax.problems.tip.stages import describe

HERE = pathlib.Path(__file__).parent
MARGIN = 20  # pixels left out at the border, and the largest shift of the alignment


def gaussian_tip(r: float, centre=(0.5, 0.5)) -> np.ndarray:
    """Gaussian kernel on [0, 1]^2, 25 x 25, width 2 r, centre (x, y) (DTMicroscope `real_tip`)."""
    x, y = np.meshgrid(np.linspace(0, 1, 25), np.linspace(0, 1, 25))
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * (2 * r) ** 2))


def tips() -> dict[str, np.ndarray]:
    """Relative heights (<= 0), to be multiplied by the height range of the surface."""
    kernels = {
        "r0.058": gaussian_tip(0.058, (0.48, 0.25)),
        "r0.075": gaussian_tip(0.075, (0.48, 0.25)),
        "r0.2": gaussian_tip(0.2),
        "r0.5": gaussian_tip(0.5, (0.3, 0.6)),
        # two apexes, the second 3 % of the range lower; a maximum, not the simulator's average
        "double": np.maximum(
            gaussian_tip(0.06, (0.35, 0.5)), gaussian_tip(0.05, (0.65, 0.55)) - 0.03
        ),
    }
    return {name: k - k.max() for name, k in kernels.items()}


def rough(n: int = 256, hurst: float = 0.8) -> np.ndarray:
    """Self-affine surface (nm), rms 20 nm, roll-off at 64 pixels, seed 2024."""
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n)))
    noise = np.fft.fft2(np.random.default_rng(2024).standard_normal((n, n)))
    z = np.fft.ifft2(noise * np.maximum(k, 1 / 64) ** -(hurst + 1)).real
    return 20 * z / z.std()


def surfaces(data: pathlib.Path) -> dict[str, tuple[np.ndarray, tuple[float, float]]]:
    """(heights, pixel size), both in nm."""
    found = {}
    for name in ("PTO_Funakubo0004.h5", "scan_0001.ibw", "PZT_thick0006.h5"):
        field = read(data / name)
        found[pathlib.Path(name).stem] = field.to_nm() - field.to_nm().mean(), field.pixel_nm
    return {**found, "rough": (rough(), (10.0, 10.0))}


def psnr(estimate: np.ndarray, truth: np.ndarray) -> float:
    error = problem_tip.aligned_error(estimate[None], truth[None], MARGIN)
    return float(10 * np.log10(np.ptp(truth) ** 2 / np.mean(error**2)))


def certain_within(solution, truth: np.ndarray, sigma: float, aligned: bool) -> dict[str, float]:
    """Share of certain pixels, and which part of them lies within 3 sigma of the truth."""
    surface, mask = (solution.results[n].data for n in ("surface", "certain"))
    m = MARGIN
    inner = (slice(m, -m), slice(m, -m))
    dy, dx = best_shift(surface, truth) if aligned else (0, 0)
    moved = [np.roll(a, (-dy, -dx), (0, 1))[inner] for a in (surface, mask)]
    error = (moved[0] - truth[inner])[moved[1].astype(bool)]
    if error.size == 0:
        return {"certain": 0.0, "within": float("nan")}
    # the height of a blind reconstruction is not identified
    error = error - np.median(error) if aligned else error
    return {"certain": float(moved[1].mean()), "within": float(np.mean(np.abs(error) < 3 * sigma))}


def best_shift(estimate: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    m, (ny, nx) = MARGIN, truth.shape
    inner = truth[m:-m, m:-m]
    shifts = [(dy, dx) for dy in range(-m, m + 1) for dx in range(-m, m + 1)]
    return min(
        shifts,
        key=lambda s: np.var(estimate[m + s[0] : ny - m + s[0], m + s[1] : nx - m + s[1]] - inner),
    )


def solve(y, pixel_nm, sigma, key, **options):
    problem = problem_tip.problem(1, *y.shape, list(pixel_nm), 25, sigma_nm=sigma, **options)
    return micjax.solve(
        problem_tip, problem, jnp.arange(1), jnp.asarray(y)[None], key=key, posterior="none"
    )


def case(name: str, truth: np.ndarray, pixel_nm, tip: np.ndarray, key) -> dict:
    began = time.monotonic()
    clean = np.asarray(dilate(jnp.asarray(truth), jnp.asarray(tip)))
    sigma = 0.005 * np.ptp(truth)
    # keys of their own: a floor made with the noise of the image would be twice too high
    noise_key, known_key, blind_key = jax.random.split(key, 3)
    noise = np.asarray(jax.random.normal(noise_key, clean.shape))
    y = (clean + sigma * noise).astype(np.float32)
    estimated = float(noise_sigma_nm(jnp.asarray(y)[None]))
    known = solve(y, pixel_nm, estimated, known_key, tip_heights_nm=tip.tolist())
    blind = solve(y, pixel_nm, estimated, blind_key)
    found = blind.extra["found"]
    seen, floor, _ = misfit(jnp.asarray(y)[None], found.heights_nm, estimated, blind_key)
    return {
        "case": name,
        "corrupted": psnr(y, truth),
        "villarrubia": psnr(blind.results["classical_surface"].data, truth),
        "oracle": psnr(np.asarray(erode(jnp.asarray(y), jnp.asarray(tip, y.dtype))), truth),
        "known": psnr(known.results["surface"].data, truth),
        "blind": psnr(blind.results["surface"].data, truth),
        "known_certain": certain_within(known, truth, sigma, False),
        "blind_certain": certain_within(blind, truth, sigma, True),
        "sigma_estimated_over_true": estimated / sigma,
        "blind_erosion": psnr(np.asarray(erode(jnp.asarray(y), found.heights_nm)), truth),
        "tip": describe(found),
        "misfit_over_floor": float(seen / floor),
        "admissible": found.passes,
        "seconds": round(time.monotonic() - began, 1),
    }


def table(rows: list[dict]) -> str:
    """The results as Markdown, with averages."""
    columns = ("corrupted", "villarrubia", "oracle", "known", "blind")
    head = "| case | corrupted | Villarrubia blind | oracle erosion | micjax known | micjax blind |"
    lines = [
        head + " known: certain (within 3 sigma) | blind: certain (within 3 sigma) |",
        "|---|" + "---|" * 7,
    ]
    for r in rows:
        sure = [
            f"{r[k]['certain']:.2f} ({r[k]['within']:.3f})"
            for k in ("known_certain", "blind_certain")
        ]
        lines.append(
            "| " + " | ".join([r["case"], *(f"{r[c]:.1f}" for c in columns), *sure]) + " |"
        )
    mean = {c: np.mean([r[c] for r in rows]) for c in columns}
    lines.append("| mean | " + " | ".join(f"{mean[c]:.1f}" for c in columns) + " | | |")
    gains = {
        "known tip - oracle": [r["known"] - r["oracle"] for r in rows],
        "blind - corrupted": [r["blind"] - r["corrupted"] for r in rows],
    }
    for name, g in gains.items():
        lines.append(
            f"\n{name}: mean {np.mean(g):+.2f} dB, worst {np.min(g):+.2f} dB ({len(g)} cases)"
        )
    for k in ("known_certain", "blind_certain"):
        pixels = sum(r[k]["certain"] for r in rows)
        share = sum(r[k]["certain"] * r[k]["within"] for r in rows if r[k]["certain"]) / pixels
        lines.append(f"\n{k}: {100 * share:.2f} % of all certain pixels within 3 sigma")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, help="folder of the three AFM scans")
    parser.add_argument("--cases", default="", help="SURFACE/TIP,... (all)")
    parser.add_argument("--table", action="store_true", help="print the table of results.jsonl")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in arguments.out.read_text().splitlines()]))
        return
    wanted = set(filter(None, arguments.cases.split(",")))
    key = jax.random.key(0)
    for surface_name, (surface, pixel_nm) in surfaces(arguments.data).items():
        for tip_name, kernel in tips().items():
            name, key = f"{surface_name}/{tip_name}", jax.random.fold_in(key, 1)
            if wanted and name not in wanted:
                continue
            row = case(name, surface, pixel_nm, kernel * np.ptp(surface), key)
            print(json.dumps(row), flush=True)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
