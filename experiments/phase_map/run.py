"""Phase maps of made-up polycrystals, blind: the number of phases and the window are found as well.

    python experiments/phase_map/run.py --set A --seeds 100 101 102 103 104   one JSON line each
    python experiments/phase_map/run.py --set B --dose 3     electrons a pixel
    python experiments/phase_map/run.py --set untuned --seeds 0 1 2  lattices of any kind
    python experiments/phase_map/run.py --set rough               the same, drift and film
    python experiments/phase_map/run.py --table                   what results.jsonl says

Seeds 0 to 4 of A, B and C are for tuning, 100 to 104 for the table. Nothing was tuned on `untuned`;
`rough` is the same with lines off by 0.5 pixels (rms) and an amorphous film of 30 % of the
intensity. The factorisation of the patches' spectra is told the number of phases.
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

import micjax
from micjax.physics.patches.local_spectra import over_strips, power_of, window_means
from micjax.physics.patches.mapping import borders
from micjax.physics.patches.polycrystal import Polycrystal
from micjax.physics.patches.unmixing import factorisation
from micjax.physics.patches.unmixing.agreement import adjusted_rand_index, matched
from micjax.problems import phase_map

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
from specimens import SAMPLING_A, SETS, specimen, untuned  # noqa: E402

NEAR = 2.0  # patches: a border that is so far off is at the right place


def made(name: str, seed: int, dose: float) -> Polycrystal:
    if name in SETS:
        return specimen(name, seed, dose)
    rough = {"jitter_px": 0.5, "amorphous": 0.3} if name == "rough" else {}
    return untuned(seed, **rough)


def solved(crystal: Polycrystal, seed: int):
    options, x, y = phase_map.prepare(crystal.image, SAMPLING_A)
    problem = phase_map.problem(**options)
    # weights and angles of the patches, which more steps would refine, are not looked at here
    return micjax.solve(phase_map, problem, x, y, key=jax.random.key(seed), steps=1)


def factorised(crystal: Polycrystal, solution, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Abundances [count, ny, nx] of the amplitudes of the same patches, and labels."""
    local = solution.problem.forward.polar.local
    image = crystal.image.astype(np.float32)
    spectra = jnp.sqrt(over_strips(local, image, None, power_of))
    flat = jnp.asarray(spectra.reshape(-1, spectra.shape[-2] * spectra.shape[-1]))
    flat = flat / jnp.linalg.norm(flat, axis=1, keepdims=True)
    found = factorisation.factorise(flat, *factorisation.start(flat, count)).abundance
    maps = np.moveaxis(np.asarray(found).reshape(*spectra.shape[:2], count), -1, 0)
    return maps, maps.argmax(0)


def scores(crystal: Polycrystal, labels, abundance, local) -> dict[str, float]:
    """Of labels at the centres of the patches."""
    count = len(set(crystal.phase_of_grain.tolist()))
    whole = np.ones(crystal.phase.shape)
    true = np.stack([window_means(crystal.phase == k, whole, local) for k in range(count + 1)])
    at = np.ix_(*(np.round(c).astype(int) for c in local.centres(crystal.phase.shape)))
    centre = crystal.phase[at]
    row = {"ari_patches": adjusted_rand_index(labels, centre)}
    if len(abundance) >= count:
        pairs = matched(labels, centre, count)
        total = np.maximum(abundance.sum(0), 1e-12)
        error = [np.abs(abundance[i] / total - true[j]).mean() for i, j in pairs.items()]
        row["abundance_error"] = float(np.mean(error))
    return row


def border_f1(ours, true) -> float:
    away = [scipy.ndimage.distance_transform_edt(~b) for b in (ours, true)]
    precision, recall = np.mean(away[1][ours] <= NEAR), np.mean(away[0][true] <= NEAR)
    return float(2.0 * precision * recall / max(precision + recall, 1e-9))


def orientation_error_deg(crystal: Polycrystal, phase, angle_deg, count: int) -> float:
    """Median over the pixels, after one offset for each phase, which is where its angle is 0."""
    each_grain = len(crystal.angle_rad) > count
    true_deg = np.rad2deg(crystal.angle_rad)[crystal.grain if each_grain else crystal.phase % count]
    errors = []
    for i, j in matched(phase, crystal.phase, count).items():
        of = (phase == i) & (crystal.phase == j) & np.isfinite(angle_deg)
        # after so much of a turn the spectra of these lattices are the same
        same_deg = 90.0 if j == 2 else 180.0
        turn = 2.0 * np.pi / same_deg * (angle_deg - true_deg)[of]
        apart = np.angle(np.exp(1j * (turn - np.angle(np.exp(1j * turn).mean()))))
        # of the median and not of the mean, which one grain that is wrong would shift
        errors.append(np.abs(apart - np.median(apart)) * same_deg / (2.0 * np.pi))
    return float(np.median(np.concatenate(errors)))


def intervals_hold(crystal: Polycrystal, abundance, pairs, local) -> float:
    """Share of the 90 % intervals of abundances that hold, where a patch is mixed."""
    whole = np.ones(crystal.phase.shape)
    held = []
    for i, j in pairs.items():
        true = window_means(crystal.phase == j, whole, local)
        mixed = (true > 0.02) & (true < 0.98)
        off = np.abs(abundance.data[i] - true) <= 1.645 * abundance.metadata["errors"][i]
        held.append(off[mixed])
    return float(np.mean(np.concatenate(held)))


def strain_of_grains(solution) -> dict[str, float]:
    """Which have none: the rms of what is found (per mille), and how many errors that is."""
    strain = solution.results["strain"]
    values, errors = strain.data, strain.metadata["errors"]
    known = np.isfinite(values).all(axis=0) & (np.abs(values).max(axis=0) > 0.0)
    each = np.unique(np.concatenate([values, errors])[:, known], axis=1)
    if not each.size:
        return {}
    found, sd = each[:3], each[3:]
    return {
        "strain_permille": float(1e3 * np.sqrt(np.mean(found**2))),
        "strain_in_sd": float(np.sqrt(np.mean((found / sd) ** 2))),
    }


def repeat(name: str, seed: int, dose: float) -> dict:
    crystal = made(name, seed, dose)
    count = len(set(crystal.phase_of_grain.tolist()))
    began = time.process_time()
    solution = solved(crystal, seed)
    seconds = time.process_time() - began
    local = solution.problem.forward.polar.local
    phase = np.nan_to_num(solution.results["phase"].data, nan=-1).astype(int)
    ours = int(solution.metrics["phases"])
    label = np.where(phase == ours, count, phase)  # no crystal
    at = np.ix_(*(np.round(c).astype(int) for c in local.centres(phase.shape)))
    crystalline = crystal.phase < count
    row = {
        "set": name,
        "seed": seed,
        "electrons_per_px": dose,
        "phases": [ours, count],
        "window_px": local.size,
        "ari": adjusted_rand_index(label, crystal.phase),
        "ari_crystal": adjusted_rand_index(label[crystalline], crystal.phase[crystalline]),
        "cpu_seconds": round(seconds, 1),
        **scores(crystal, label[at], solution.results["abundance"].data, local),
    }
    if ours == count:
        pairs = {**matched(phase, crystal.phase, count), count: count}
        union = [
            np.sum((label == i) & (crystal.phase == j))
            / np.sum((label == i) | (crystal.phase == j))
            for i, j in pairs.items()
            if np.any(crystal.phase == j)
        ]
        row["mean_iou"] = float(np.mean(union))
        row["border_f1"] = border_f1(
            *(borders(of[at], np.zeros(label[at].shape, int)) for of in (label, crystal.phase))
        )
        sure = solution.results["probability"].data
        right = sum((phase == i) & (crystal.phase == j) for i, j in pairs.items()) > 0
        unsure = (sure > 0.6) & (sure < 0.9) & (phase < count) & crystalline
        row |= {"unsure": float(sure[unsure].mean()), "unsure_right": float(right[unsure].mean())}
        row["intervals_hold"] = intervals_hold(crystal, solution.results["abundance"], pairs, local)
        if name in SETS:
            angle = solution.results["orientation"].data
            row["orientation_error_deg"] = orientation_error_deg(crystal, phase, angle, count)
    row |= strain_of_grains(solution)
    maps, labels = factorised(crystal, solution, count)
    row |= {f"nmf_{n}": v for n, v in scores(crystal, labels, maps, local).items()}
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()}


def table(path: pathlib.Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    held = [r for r in rows if r["seed"] >= 100 or r["set"] not in SETS]
    cases = sorted({(r["set"], r["electrons_per_px"]) for r in held})
    for name, dose in cases:
        of = [r for r in held if (r["set"], r["electrons_per_px"]) == (name, dose)]
        right = sum(r["phases"][0] == r["phases"][1] for r in of)
        print(f"{name}, {dose:g} electrons a pixel: {len(of)} images, phases right in {right}")
        for key in (
            "ari ari_crystal ari_patches mean_iou abundance_error border_f1 "
            "orientation_error_deg strain_permille strain_in_sd intervals_hold unsure unsure_right "
            "nmf_ari_patches nmf_abundance_error cpu_seconds"
        ).split():
            values = [r[key] for r in of if key in r]
            if values:
                print(
                    f"  {key:24s} {np.mean(values):8.3f}  [{min(values):.3f} to {max(values):.3f}]"
                )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--set", default="B", choices=[*SETS, "untuned", "rough"])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    arguments.add_argument("--dose", type=float, default=60.0)
    arguments.add_argument("--out", type=pathlib.Path, default=HERE / "results.jsonl")
    arguments.add_argument("--table", action="store_true")
    given = arguments.parse_args()
    if given.table:
        table(given.out)
        sys.exit()
    for seed in given.seeds:
        line = json.dumps(repeat(given.set, seed, given.dose))
        print(line, flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")
