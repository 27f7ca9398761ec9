"""What a prediction of the total pattern has to beat, and the noise of the data set itself."""

import dataclasses
import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from crystals import Settings, drawn
from jaxtyping import Float
from patterns import AXIS, ENERGY_KEV, PIXEL_MRAD, factors, moving, recorded, simulated

from micjax.physics.electrons.optics import wavelength_A

Images = Float[np.ndarray, "n ky kx"]
ANGLE_MRAD = PIXEL_MRAD * np.hypot(AXIS[:, None], AXIS)
K2 = (1e-3 * ANGLE_MRAD / wavelength_A(ENERGY_KEV)) ** 2  # 1/Å^2
RINGS_MRAD = np.arange(0.0, 60.1, 2.0)
ENERGY_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
FITTED = "elastic exp(-B k²) + c, fitted"
COUNTS = (8, 16, 32, 64)
MANY = 512  # configurations, and as many others as the reference
ELEMENTS, CELLS = (3, 35, 65, 99), (8, 14, 20, 25)  # edges of bins: mean Z, thickness
SHOWN = (15, 45, 75)  # mean Z of the crystals of the figure, about


def radial(patterns: Float[np.ndarray, "... ky kx"]) -> Float[np.ndarray, "... rings"]:
    """Mean over rings of 2 mrad up to 60 mrad."""
    ring = np.digitize(ANGLE_MRAD, RINGS_MRAD) - 1
    masks = ring.ravel()[:, None] == np.arange(len(RINGS_MRAD) - 1)
    return patterns.reshape(*patterns.shape[:-2], -1) @ (masks / masks.sum(0))


def errors(predicted: Images, total: Images) -> dict[str, float]:
    """Means over patterns; intensities in units of the peak of the total pattern."""
    peak = total.max((-2, -1))
    squared = ((predicted - total) ** 2).mean((-2, -1)) / peak**2
    off = np.abs(radial(predicted) / radial(total) - 1.0)
    return {
        "mse": float(squared.mean()),
        "mse_median": float(np.median(squared)),
        "radial_mean": float(off.mean()),
        "radial_worst": float(off.max(-1).mean()),
    }


def damped_and_flat(elastic: Images, total: Images, steps: int = 30) -> Images:
    """elastic exp(-B k^2) + c of least squares, B and c of each pattern: Gauss-Newton, in which c
    is whatever fits best."""
    b = np.zeros((len(elastic), 1, 1))
    for _ in range(steps + 1):
        model = elastic * np.exp(-b * K2)
        c = (total - model).mean((-2, -1), keepdims=True)
        slope = -K2 * model
        slope = slope - slope.mean((-2, -1), keepdims=True)
        miss = total - model - c
        b = b + (slope * miss).sum((-2, -1), keepdims=True) / (slope**2).sum(
            (-2, -1), keepdims=True
        )
    return model + c


def whole(data: h5py.File, name: str, which: np.ndarray) -> np.ndarray:
    """A data set of the crystals `which`, in double precision, a pattern in each row."""
    values = data[name][: len(which)][which].astype(float)
    return values.reshape(-1, *values.shape[3:])


def split(data: h5py.File) -> np.ndarray:
    """**Raises:** `ValueError` when there is no test crystal."""
    found = data["split"].asstr()[()]
    if "test" not in found:
        raise ValueError(f"the file has {len(found)} crystals, none of them for the test yet")
    return found


def baselines(data: h5py.File) -> dict[str, dict[str, float]]:
    """On the test crystals, against the total pattern; "second half" against that of the first half
    of the configurations, with which it shares no noise."""
    test = split(data) == "test"
    names = ("static", "elastic", "damped", "elastic_second", "total_first", "total")
    static, elastic, damped, second, first, total = (whole(data, n, test) for n in names)
    return {
        "static": errors(static, total),
        "damped": errors(damped, total),
        "elastic": errors(elastic, total),
        FITTED: errors(damped_and_flat(elastic, total), total),
        "noise of the total": errors(first, total),  # as large: see README.md
        "second half: elastic": errors(second, first),
        f"second half: {FITTED}": errors(damped_and_flat(second, first), first),
        "second half: noise of the total": errors(2.0 * total - first, first),
    }


def diffuse_shares(data: h5py.File) -> list[list[float]]:
    """Mean of 1 - elastic / total over all angles: rows are ranges of mean Z, columns of
    thickness. N / (N - 1) times, since `elastic` has 1 / N of the diffuse part in it."""
    count = json.loads(data.attrs["settings"])["configurations"]
    sums = {n: data[f"{n}_inside"][()] + data[f"{n}_beyond"][()] for n in ("elastic", "total")}
    share = count / (count - 1) * (1.0 - sums["elastic"] / sums["total"]).mean(-1)
    z = data["elements"][()] @ [0.2, 0.2, 0.6]
    row, column = np.digitize(z, ELEMENTS)[:, None], np.digitize(data["cells"][()], CELLS)
    return [
        [float(share[(row == i) & (column == j)].mean()) for j in range(1, len(CELLS))]
        for i in range(1, len(ELEMENTS))
    ]


def energy(data: h5py.File) -> dict[str, list[float]]:
    """Quantiles of what total patterns have in the detector and beyond it, and of what the grid
    lost."""
    inside, beyond = (data[f"total_{w}"][()] for w in ("inside", "beyond"))
    shares = {"inside": inside, "beyond": beyond, "lost": 1.0 - inside - beyond}
    return {n: np.quantile(s, ENERGY_QUANTILES).tolist() for n, s in shares.items()}


def convergence(data: h5py.File) -> dict[str, float]:
    """Error of a mean of so many configurations of the first test crystal: root of the mean `mse`
    over disjoint groups, without the part that is the reference's."""
    number = int(np.flatnonzero(split(data) == "test")[0])
    settings = Settings(**json.loads(data.attrs["settings"]))
    crystal = drawn(settings, number)
    ours, f = jax.tree.map(jnp.asarray, crystal), factors(settings, crystal)

    def total(first, after):
        _, sums = moving(settings, ours, f, jax.random.key(settings.seed), first, after)
        seen = recorded(settings, ours.edge_A, sums / (after - first))[""]
        return np.asarray(seen, float).reshape(-1, *seen.shape[-2:])

    reference = total(MANY, 2 * MANY)
    blocks = np.array([total(s, s + COUNTS[0]) for s in range(0, MANY, COUNTS[0])])
    out = {}
    for count in COUNTS:
        groups = blocks.reshape(-1, count // COUNTS[0], *blocks.shape[1:]).mean(1)
        mse = np.mean([errors(g, reference)["mse"] for g in groups])
        out[str(count)] = float(np.sqrt(mse * MANY / (MANY + count)))
    return out


def grid(data: h5py.File) -> dict[str, dict[str, float]]:
    """Errors of the file's grid against one of 4/3 as many pixels, the same displacements: 8
    configurations of the first three test crystals."""
    settings = Settings(**json.loads(data.attrs["settings"]))
    ours = dataclasses.replace(settings, configurations=8)
    finer = dataclasses.replace(ours, pixels=4 * settings.pixels // 3)
    seen = {"static": [], "total": []}
    for number in np.flatnonzero(split(data) == "test")[:3]:
        crystal = drawn(settings, int(number))
        pair = [simulated(s, int(number), crystal) for s in (ours, finer)]
        for name, pairs in seen.items():
            pairs.append([p[name].astype(float).reshape(-1, *p[name].shape[-2:]) for p in pair])
    return {name: errors(*map(np.concatenate, zip(*p, strict=True))) for name, p in seen.items()}


def results(data: h5py.File) -> dict:
    kinds, counts = np.unique(split(data), return_counts=True)
    return {
        "crystals": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        "baselines": baselines(data),
        "energy": energy(data),
        "diffuse_share": diffuse_shares(data),
        "convergence": convergence(data),
        "grid": grid(data),
    }


def error_table(title: str, of: dict[str, dict[str, float]]) -> list[str]:
    rows = [f"| {title} | MSE / peak² | its median | radial profile, mean | worst ring |"]
    rows.append("|---|---|---|---|---|")
    for name, e in of.items():
        percent = f"{100 * e['radial_mean']:.2f} % | {100 * e['radial_worst']:.2f} %"
        rows.append(f"| {name} | {e['mse']:.2e} | {e['mse_median']:.2e} | {percent} |")
    return rows


def tables(found: dict) -> str:
    split = ", ".join(f"{n} {c}" for n, c in found["crystals"].items())
    rows = [f"crystals: {split}", "", *error_table("prediction", found["baselines"])]
    rows += ["", "| total, share of the beam | least | 10 % | median | 90 % | most |"]
    rows.append("|---|---|---|---|---|---|")
    rows += [f"| {n} | {' | '.join(f'{q:.4f}' for q in e)} |" for n, e in found["energy"].items()]
    cells = [f"{a} to {b - 1} cells" for a, b in zip(CELLS[:-1], CELLS[1:], strict=True)]
    rows += ["", f"| mean Z | {' | '.join(cells)} |", "|---|" + "---|" * len(cells)]
    for a, b, shares in zip(ELEMENTS[:-1], ELEMENTS[1:], found["diffuse_share"], strict=True):
        rows.append(f"| {a} to {b} | {' | '.join(f'{100 * s:.1f} %' for s in shares)} |")
    rows += ["", "| configurations | rms error / peak | times sqrt(N) |", "|---|---|---|"]
    for n, e in found["convergence"].items():
        rows.append(f"| {n} | {e:.2e} | {e * np.sqrt(int(n)):.2e} |")
    return "\n".join([*rows, "", *error_table("grid against a finer one", found["grid"])])


def figure(data: h5py.File):
    """The thickest of three held-out crystals, light to heavy; square root of the intensity."""
    from matplotlib.colors import PowerNorm

    from micjax.report import figures

    test = np.flatnonzero(split(data) == "test")
    z = data["elements"][()] @ [0.2, 0.2, 0.6]
    chosen = [int(test[np.argmin(np.abs(z[test] - wanted))]) for wanted in SHOWN]
    canvas, axes = figures.new_figure(3, 5, 9.6, 5.4, width_ratios=[1, 1, 1, 1, 1.5])
    extent = 32 * PIXEL_MRAD * np.array([-1, 1, 1, -1])
    for row, number in zip(axes, chosen, strict=True):
        shown = {n: data[n][number, -1, 0] for n in ("static", "elastic", "total")}
        shown["diffuse"] = shown["total"] - shown["elastic"]
        norms = dict.fromkeys(shown, PowerNorm(0.5, 0.0, shown["total"].max()))
        norms["diffuse"] = PowerNorm(0.5, 0.0, shown["diffuse"].max())
        for ax, (name, pattern) in zip(row[:4], shown.items(), strict=True):
            ax.imshow(pattern, norm=norms[name], cmap="magma", extent=extent)
            ax.set_xticks([-60, 0, 60])
            ax.set_yticks([])
            if number == chosen[0]:
                ax.set_title(name + ", its own scale" * (name == "diffuse"), fontsize=9)
        elements = ", ".join(str(e) for e in data["elements"][number])
        cells = data["cells"][number, -1]
        row[0].set_ylabel(f"Z = {elements}\n{cells} cells", fontsize=8)
        middle = (RINGS_MRAD[1:] + RINGS_MRAD[:-1]) / 2
        for (name, pattern), colour in zip(shown.items(), figures.SERIES, strict=False):
            style = {"color": colour, "lw": 1.6 if name == "total" else 1.1, "label": name}
            row[4].semilogy(middle, radial(pattern), **style)
        row[4].grid(alpha=0.25, lw=0.5)
    axes[0, 4].legend(fontsize=7, frameon=False)
    axes[0, 4].set_title("mean over a ring", fontsize=9)
    for ax in axes[2]:
        ax.set_xlabel("mrad", fontsize=8)
    return canvas
