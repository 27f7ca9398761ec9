"""Particles and grains: simulated images with truth, real ones with boxes drawn by hand.

    python experiments/particles/run.py [--only overlap domes errors real tuned speed]
        [--seeds 100 ...] [--steps 60] [--net FILE] [--data ../shared/data/particles]

Prints one JSON line an image and one for their mean.
"""

import argparse
import json
import pathlib
import time

import images
import jax
import numpy as np
import scipy.optimize
import watershed
from images import LOOKED_AT, NAMES, ap50, box_f1, boxes_of, matched, material, real

from micjax.core.tree import replace
from micjax.nets.train import Schedule, courses
from micjax.problems.particles.instances.errors import errors_of
from micjax.problems.particles.instances.table import Shapes, shapes
from micjax.problems.particles.segmentation import SURE, segmented, shipped
from micjax.problems.particles.tuning import from_labels, labels_in_boxes

TWO_SIDED_90 = 1.645


def told(**row) -> None:
    print(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}),
        flush=True,
    )


def simulated(name: str, seeds, network, least_score: float) -> None:
    draw = getattr(images, name)
    rows = []
    for seed in seeds:
        image, truth = draw(seed)
        split = segmented(image, network, least_score=least_score)
        ratio = matched(split.labels, truth)[2]
        rows.append(
            {
                "micjax": ap50(split.labels, truth),
                "iou": float(ratio.mean()),
                "count_error": abs(split.labels.max() / truth.max() - 1.0),
            }
            | watershed.of(name, image, truth)
        )
        told(set=name, seed=seed, **rows[-1])
    keys = rows[0]
    told(set=name, mean=True, **{k: float(np.mean([r[k] for r in rows])) for k in keys})
    told(set=name, sd=True, **{k: float(np.std([r[k] for r in rows], ddof=1)) for k in keys})


def pairs(seeds, network):
    """Instances that are matched, and whole, in images like those of the training from other keys:
    ours, the truth, and the doubt of the network."""
    for seed in seeds:
        for image, truth in images.made_up(seed):
            split = segmented(image, network, "bright", 1.0)
            if not len(split.score) or not truth.any():
                continue
            rows, columns, _ = matched(split.labels, truth)
            ours, true = shapes(split.labels), shapes(truth)
            a, b = columns - 1, rows - 1
            whole = ~(ours.cut[a] | true.cut[b])
            a, b = a[whole], b[whole]
            yield Shapes(*(f[a] for f in ours)), Shapes(*(f[b] for f in true)), split.doubt[a]


def errors(seeds, network) -> None:
    """How often 90 % intervals hold."""
    z = {}
    for ours, true, doubt in pairs(seeds, network):
        for field, sd in errors_of(ours, doubt).items():
            z.setdefault(field, []).append((getattr(ours, field) - getattr(true, field)) / sd)
    for field, parts in z.items():
        off = np.concatenate(parts)
        told(
            set="errors",
            of=field,
            instances=len(off),
            held_90=float(np.mean(np.abs(off) < TWO_SIDED_90)),
            mean_z=float(off.mean()),
        )


def calibrate(seeds, network) -> None:
    """The numbers of `micjax.problems.particles.instances.errors`."""
    parts = list(pairs(seeds, network))
    doubt = np.concatenate([p[2] for p in parts])
    ours, true = (
        Shapes(*(np.concatenate(fields) for fields in zip(*(p[i] for p in parts), strict=True)))
        for i in (0, 1)
    )
    causes = np.stack([doubt, ours.shared_px], 1)
    off = ours.area_px2 - true.area_px2

    def nll(log):
        variance = causes @ np.exp(log) + 1.0
        return np.sum(np.log(variance) + 3.0 * np.log1p(off**2 / variance / 2.0))  # few are far off

    a, b = np.exp(scipy.optimize.minimize(nll, np.log([20.0, 10.0]), method="Nelder-Mead").x)
    sd = np.sqrt(a * doubt + b * ours.shared_px + 1.0)
    factor = (np.quantile(np.abs(off) / sd, 0.9) / TWO_SIDED_90) ** 2
    relative = 0.5 * np.sqrt(factor) * sd / ours.area_px2
    scales = {
        "longest_px": ours.diameter_px,
        "shortest_px": ours.diameter_px,
        "aspect": ours.aspect,
        "solidity": 1.0,
    }
    needed = {}
    for field, of in scales.items():
        off = np.abs(getattr(ours, field) - getattr(true, field)) / (relative * of)
        needed[field] = float(np.quantile(off, 0.9) / TWO_SIDED_90)
    told(
        set="calibrate",
        instances=len(doubt),
        of_doubt=float(a * factor),
        of_contact=float(b * factor),
        bias_px=float(np.median(ours.area_px2 - true.area_px2)),
        **needed,
    )


def on_boxes(name: str, image, boxes, network, least_score: float, polarity="auto") -> dict:
    begun = time.monotonic()
    split = segmented(image, network, polarity, least_score=least_score)
    taken = time.monotonic() - begun
    f1, hits = box_f1(boxes_of(split.labels), boxes)
    return {
        "image": name,
        "boxes": len(boxes),
        "instances": int(split.labels.max()),
        "hits": hits,
        "f1": f1,
        "zooms": {f"{z:g}": int((split.zoom == z).sum()) for z in np.unique(split.zoom)},
        "wall_s": taken,
    }


def _means(section: str, rows, keys) -> None:
    unseen = [r for r in rows if r["image"] not in LOOKED_AT]
    for which, part in (("all", rows), ("not looked at", unseen)):
        if part:
            told(set=section, mean=which, **{k: float(np.mean([r[k] for r in part])) for k in keys})


def simulation_only(network, least_score: float, folder) -> None:
    rows = []
    for name in NAMES:
        image, boxes = real(name, folder)
        row = on_boxes(name, image, boxes, network, least_score)
        kind = images.true_polarity(image, boxes)
        row["f1_polarity_given"] = on_boxes(name, image, boxes, network, least_score, kind)["f1"]
        row["watershed_oracle"] = max(
            box_f1(boxes_of(watershed.particles(image, bright)), boxes)[0]
            for bright in (True, False)
        )
        rows.append(row)
        told(set="real", **row)
    _means("real", rows, ("f1", "f1_polarity_given", "watershed_oracle"))


def tuned(network, least_score: float, steps: int, rate: float, folder) -> None:
    shown = {}
    for name in NAMES:
        image, boxes = real(name, folder)
        shown[name] = image, labels_in_boxes(boxes, image.shape)
    rows = []
    for left_out in dict.fromkeys(map(material, NAMES)):
        others = [n for n in NAMES if material(n) != left_out]
        taught = from_labels(network, *zip(*(shown[n] for n in others), strict=True))
        schedule = Schedule(steps=steps, chunk=steps, learning_rate=rate, average=0.95, held_out=1)
        *_, last = courses(taught, schedule, jax.random.key(0))
        # the best on what is held out may be where it began: another material says if it helps
        fitted = replace(network, last.state.average)
        for name in NAMES:
            if material(name) == left_out:
                image, boxes = real(name, folder)
                rows.append(on_boxes(name, image, boxes, fitted, least_score))
                told(set="tuned", left_out=left_out, **rows[-1])
    _means("tuned", rows, ("f1",))


def speed(network) -> None:
    """Frames one after the other: the labels and the table of each."""
    frames = [np.tile(images.overlap(s)[0], (2, 2)) for s in range(3)]
    for zoom in (0.5, 1.0):
        wall, busy = [], []
        for i in range(30):
            begun = time.monotonic(), time.process_time()
            split = segmented(frames[i % 3], network, "dark", zoom)
            of = shapes(split.labels)
            errors_of(of, split.doubt)
            wall.append(time.monotonic() - begun[0])
            busy.append(time.process_time() - begun[1])
        told(
            set="speed",
            frame_px=512,
            zoom=zoom,
            instances=len(of.area_px2),
            first_s=float(np.median(wall[1:11])),
            last_s=float(np.median(wall[-10:])),
            busy_s=float(np.median(busy[1:])),
            frames_per_s=float(1.0 / np.median(wall[1:])),
        )


SECTIONS = ("overlap", "domes", "errors", "real", "tuned", "speed", "calibrate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS[:-1])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 110)))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--least-score", type=float, default=SURE)
    parser.add_argument("--net")
    parser.add_argument("--data", type=pathlib.Path, default=images.DATA)
    asked = parser.parse_args()
    network = shipped(asked.net)
    for section in asked.only:
        if section in ("overlap", "domes"):
            simulated(section, asked.seeds, network, asked.least_score)
        elif section in ("errors", "calibrate"):
            (errors if section == "errors" else calibrate)(asked.seeds, network)
        elif section == "real":
            simulation_only(network, asked.least_score, asked.data)
        elif section == "tuned":
            tuned(network, asked.least_score, asked.steps, asked.rate, asked.data)
        else:
            speed(network)


if __name__ == "__main__":
    main()
