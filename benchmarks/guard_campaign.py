"""Does anything leave its limits? Hostile proposals go through Guard, and another judge looks on.

    python benchmarks/guard_campaign.py [--proposals 1000000] [--seed 0]

Moves, points, spectra that sweep the bias, paths and frames are drawn by lot: within the limits and
beyond, across forbidden regions, NaN, near to where it stands and far. Underneath is a made-up
instrument that does what it is told, one axis after the other, and stands beyond the limits now and
then, as if somebody had turned a knob. It writes down the straight lines along which it moved and
measured. The judge knows these lines, the limits, and the regions as shapes, and nothing of the
guard: it cuts each line with each shape. Prints one JSON line.
"""

import argparse
import json
import math
import os
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from micjax.instruments import Axis, Frame, Guard, InstrumentError, Mode, Record
from micjax.instruments.base import check_target

OWN = {"x": (-2.0, 2.0), "y": (-2.0, 2.0), "bias": (-5.0, 5.0)}
LIMITS = {"x": (-1.0, 1.0), "y": (-0.8, 1.0), "bias": (-2.0, 1.5)}
STEP = {"x": math.inf, "y": math.inf, "bias": 1.0}  # the bias is ramped
DISC = (0.35, 0.2, 0.3)  # x, y, radius: never over it
WALL = (-0.45, -0.4, 0.5)  # x from, x to, above this bias: never across it with so much bias
RANGES = ((-0.5, 0.5), (-2.0, 1.5), (0.0, 1.2), (-3.0, 1.0), (1.0, 2.5))  # that spectra sweep
MISSES = 1e-9  # how far from its target it arrives
SLACK = 1e-4  # the guard looks at places, between which a line may touch the disc


class Recorder:
    """Does what it is told, and remembers the lines `[start, end]` in x, y, bias along which."""

    def __init__(self, rng):
        axes = {n: Axis("m", *OWN[n], max_step=STEP[n], tol=2.0 * MISSES) for n in ("x", "y")}
        self.axes = axes | {"bias": Axis("V", *OWN["bias"], max_step=STEP["bias"], tol=1e-6)}
        self.range, self.rng = RANGES[0], rng
        self.modes = {
            "point": Mode("point", {"z": "m"}),
            "spectrum": Mode("point", {"z": "m"}, sweeps=lambda: {"bias": self.range}),
            "line": Mode("path", {"z": "m"}),
            "image": Mode("frame", {"z": "m"}),
        }
        self.at = np.zeros(3)
        self.moved, self.measured = [], []

    def read(self):
        return dict(zip(self.axes, self.at.tolist(), strict=True))

    def move(self, target):
        target = check_target(self.axes, target)  # as every adapter does
        for name in sorted(target, reverse=self.rng.random() < 0.5):
            end = self.at.copy()
            end[list(self.axes).index(name)] = target[name] + MISSES * self.rng.uniform(-1, 1)
            self.moved.append((self.at, end))
            self.at = end
        return self.read()

    def acquire(self, mode, over=None):
        places = [self.at]
        if isinstance(over, Frame):
            first, right, up, last = (np.array([*p, self.at[2]]) for p in corners(over))
            for row in np.linspace(0.0, 1.0, 2 * over.shape[0] + 1):
                places += [first + row * (up - first), right + row * (last - right)]
            del places[0]
        elif over is not None:
            places = [np.array([*p, self.at[2]]) for p in over]
        if over is not None:
            corner = np.array([places[0][0], self.at[1], self.at[2]])
            other = np.array([self.at[0], places[0][1], self.at[2]])
            self.moved += [(self.at, corner), (corner, places[0])]
            self.moved += [(self.at, other), (other, places[0]), (self.at, places[0])]
        self.measured += list(zip(places, places[1:] or places, strict=False))
        if mode == "spectrum":
            ends = (np.array([*self.at[:2], bias]) for bias in self.range)
            self.measured.append(tuple(ends))
        now = time.time()
        return Record({"z": np.zeros(())}, {"z": ()}, {"z": "m"}, {}, self.read(), now, now)

    def stop(self):
        pass


def corners(frame):
    """Of the outermost pixels, by way of complex numbers."""
    turn, middle = complex(math.cos(frame.angle), math.sin(frame.angle)), complex(*frame.center)
    for v in (-0.5, 0.5):
        for u in (-0.5, 0.5):
            place = middle + turn * complex(u * frame.size[0], v * frame.size[1])
            yield place.real, place.imag


# --- the judge ------------------------------------------------------------------------------------


def beyond(lines):
    """Which lines `[n, 2, 3]` have an end beyond the limits."""
    lo, hi = np.array(list(LIMITS.values())).T
    return ((lines < lo - SLACK) | (lines > hi + SLACK)).any(axis=(1, 2))


def in_disc(lines):
    """Which lines come nearer to the middle of the disc than its radius."""
    start, d = lines[:, 0, :2] - DISC[:2], (lines[:, 1] - lines[:, 0])[:, :2]
    length = np.sum(d**2, axis=1)
    share = np.clip(-np.sum(start * d, axis=1) / np.where(length > 0.0, length, 1.0), 0.0, 1.0)
    return np.hypot(*(start + share[:, None] * d).T) < DISC[2] - SLACK


def in_wall(lines):
    """Which lines have a part where x is within the wall and the bias above what is allowed."""
    start, d = lines[:, 0], lines[:, 1] - lines[:, 0]
    low, high = np.zeros(len(d)), np.ones(len(d))
    for axis, sign, bound in ((0, 1.0, WALL[0]), (0, -1.0, -WALL[1]), (2, 1.0, WALL[2])):
        # sign * x > bound from where on, or until where
        above, slope = sign * start[:, axis] - bound - SLACK, sign * d[:, axis]
        share = -above / np.where(slope == 0.0, 1.0, slope)
        low = np.where(slope > 0.0, np.maximum(low, share), low)
        high = np.where(slope < 0.0, np.minimum(high, share), high)
        high = np.where((slope == 0.0) & (above <= 0.0), -1.0, high)
    return low <= high


def forbidden(lines):
    lines = np.asarray(lines, float).reshape(-1, 2, 3)
    return in_disc(lines) | in_wall(lines)


def wrong(lines) -> int:
    """How many lines leave the limits or cut a region, of an instrument that stood within."""
    lines = np.asarray(lines, float).reshape(-1, 2, 3)
    return int(np.sum(beyond(lines) | forbidden(lines)))


def stands_wrong(at) -> bool:
    within = (lo <= value <= hi for value, (lo, hi) in zip(at, LIMITS.values(), strict=True))
    return not all(within) or is_forbidden(dict(zip(OWN, at.tolist(), strict=True)))


def wrongly_back(lines) -> bool:
    """Whether one that stood beyond a limit or in a region went further, or back again."""
    lines = np.asarray(lines, float).reshape(-1, 2, 3)
    lo, hi = np.array(list(LIMITS.values())).T
    outside = np.maximum(lo - lines, lines - hi)  # of each axis at each end
    further = (outside > SLACK) & (outside > np.maximum(outside[0, 0], 0.0) + SLACK)
    parts = np.linspace(lines[:, 0], lines[:, 1], 257, axis=1)  # [line, place, axis]
    cut = forbidden(np.stack([parts[:, :-1], parts[:, 1:]], axis=2)).tolist()
    free = cut.index(False) if False in cut else len(cut)
    return bool(further.any()) or True in cut[free:]


def is_forbidden(position):
    """What the guard is told of the two regions."""
    x, y, bias = position["x"], position["y"], position["bias"]
    in_disc = (x - DISC[0]) ** 2 + (y - DISC[1]) ** 2 < DISC[2] ** 2
    return in_disc or (WALL[0] < x < WALL[1] and bias > WALL[2])


# --- the proposals --------------------------------------------------------------------------------


def value(rng, name):
    lo, hi = LIMITS[name]
    kind = rng.random()
    if kind < 0.02:
        return float(rng.choice([np.nan, np.inf, -np.inf]))
    if kind < 0.10:
        return float(rng.choice([lo, hi, np.nextafter(hi, 9.0), np.nextafter(lo, -9.0)]))
    wide = 0.25 * (hi - lo) if kind < 0.3 else 0.0
    return float(rng.uniform(lo - wide, hi + wide))


def proposal(rng, at):
    """A verb and what it is given."""
    kind = rng.random()
    if kind < 0.70:
        names = [n for n in OWN if rng.random() < 0.6] or ["x"]
        return "move", {n: value(rng, n) for n in names}
    if kind < 0.85:
        return ("point", None) if rng.random() < 0.5 else ("spectrum", None)
    near = at[:2] if rng.random() < 0.7 else np.array([rng.uniform(-1, 1), rng.uniform(-0.9, 1)])
    reach = 10.0 ** rng.uniform(-3.0, -0.3)
    if kind < 0.95:
        count = int(rng.integers(1, 5))
        return "line", near + reach * rng.normal(size=(count, 2)) * (rng.random() > 0.1)
    size, shape = reach * rng.uniform(0.2, 1.0, 2), tuple(rng.integers(1, 6, 2).tolist())
    center = near + 0.5 * reach * rng.normal(size=2)
    return "image", Frame(tuple(center), tuple(size), shape, float(rng.uniform(-4, 4)))


def campaign(proposals: int, seed: int, guarded: bool = True) -> dict[str, int]:
    """How many proposals were carried out, and what was wrong."""
    rng = np.random.default_rng(seed)
    device = Recorder(rng)
    guard = Guard(device, LIMITS, forbidden=is_forbidden) if guarded else device
    found = dict.fromkeys(("carried_out", "lines", "moved", "measured", "refused_too_late"), 0)
    moved, measured = [], []  # lines of an instrument that stood within, judged many at a time
    for i in range(proposals):
        if rng.random() < 0.02:  # somebody turns the knobs
            device.at = np.array([rng.uniform(*OWN[n]) for n in OWN])
        device.range = RANGES[int(rng.integers(len(RANGES)))]
        device.moved, device.measured = [], []
        stood_wrong = stands_wrong(device.at)
        verb, what = proposal(rng, device.at)
        try:
            guard.move(what) if verb == "move" else guard.acquire(verb, what)
            found["carried_out"] += 1
        except InstrumentError:
            found["refused_too_late"] += bool(device.moved or device.measured)
        found["lines"] += len(device.moved) + len(device.measured)
        measured += device.measured
        if stood_wrong and device.moved:
            found["moved"] += wrongly_back(device.moved)
        else:
            moved += device.moved
        if len(moved) + len(measured) > 20_000 or i == proposals - 1:
            found["moved"] += wrong(moved)
            found["measured"] += wrong(measured)
            moved, measured = [], []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--proposals", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begun = time.process_time()
    found = campaign(given.proposals, given.seed)
    seconds = time.process_time() - begun
    bare = campaign(2_000, given.seed, guarded=False)
    print(
        json.dumps(
            {
                "name": f"{given.proposals} proposals through Guard",
                "value": found["moved"] + found["measured"] + found["refused_too_late"],
                "unit": "moved or measured where nothing may be",
                "peer": "no guard, 2000 proposals",
                "peer_value": bare["moved"] + bare["measured"],
                "ratio": None,
                **found,
                "cpu_seconds": round(seconds, 1),
                "note": f"seed {given.seed}; Python {sys.version.split()[0]}",
            }
        )
    )


if __name__ == "__main__":
    main()
