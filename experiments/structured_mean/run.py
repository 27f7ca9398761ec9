"""Physics as the mean of a Gaussian process: error bars under drift, and which of several laws.

    python experiments/structured_mean/run.py drift [--repeats 100]
    python experiments/structured_mean/run.py laws [--runs 20]
    python experiments/structured_mean/run.py table
    python experiments/structured_mean/run.py figure --out FOLDER

drift: a line scan over an edge (micjax.problems.edge) on a signal that drifts, of which the forward
model knows nothing. How often do 90 % intervals hold the true place and width of the edge: by the
model alone, and by a process whose mean it is? laws: the size of a domain after pulses of various
lengths grows by one of three laws. After how many pulses, chosen for that, is the true one known?
Both print a table and write a line of JSON a run into drift.jsonl or laws.jsonl.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optimistix
from jaxtyping import Array

import micjax
from micjax.active import hypotheses, streaming
from micjax.active.acquire.values import best_allowed
from micjax.active.gp import process as gp
from micjax.problems import edge

# --- an edge under drift ------------------------------------------------------------------------

REACH_NM, POINTS, NOISE = 5.0, 60, 0.02
KNOWN = {"edge_nm": (-1.5, 1.5), "width_nm": (0.3, 1.0)}  # where truths are drawn from


def drift(x_nm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Creep, a linear drift and a slow wave of the signal, whose step is 1: up to about 0.2."""
    t = (x_nm + REACH_NM) / (2.0 * REACH_NM)
    creep = rng.normal(0.0, 0.1) * np.exp(-t / rng.uniform(0.1, 0.5))
    wave = rng.normal(0.0, 0.05) * np.sin(2.0 * np.pi * (rng.uniform(0.5, 1.5) * t + rng.uniform()))
    return creep + rng.normal(0.0, 0.1) * t + wave


def scan(seed: int):
    """True values, places, signal, and what drifted."""
    rng = np.random.default_rng(seed)
    truth = {name: rng.uniform(*ends) for name, ends in KNOWN.items()}
    x_nm = np.linspace(-REACH_NM, REACH_NM, POINTS)
    clean = np.asarray(edge.problem(**truth).forward(jnp.asarray(x_nm)))
    drifted = drift(x_nm, rng)
    return truth, x_nm, clean + drifted + rng.normal(0.0, NOISE, POINTS), drifted


def intervals(problem, x, y, key, prefix: str) -> dict[str, np.ndarray]:
    """90 % intervals by particles of the posterior of a process."""
    cloud = streaming.begin(problem, x, y, x.points[:1], key, particles=256)
    values = streaming.values(cloud)
    return {n: np.quantile(values[f"{prefix}{n}"], [0.05, 0.5, 0.95]) for n in KNOWN}


def of_model_alone(x_nm, y, key) -> dict[str, np.ndarray]:
    """Fit and Laplace intervals of the forward model with white noise of unknown size."""
    best = micjax.fit(
        edge.problem(), x_nm, y, solver=optimistix.BFGS(1e-8, 1e-8), steps=200
    ).problem
    draws = micjax.laplace(best, x_nm, y).sample(key, 4000)
    return {n: np.quantile(draws[f"forward.{n}"], [0.05, 0.5, 0.95]) for n in KNOWN}


def under_drift(repeats: int) -> list[dict]:
    process = gp.process([-REACH_NM], [REACH_NM], mean=edge.problem(), y_scale=0.1)
    lines = []
    for seed in range(repeats):
        truth, x_nm, y, _ = scan(seed)
        key = jax.random.key(seed)
        data = gp.buffered(x_nm[:, None], y)
        found = {
            "alone": of_model_alone(jnp.asarray(x_nm), jnp.asarray(y), key),
            "process": intervals(process, *data, key, "forward.mean.forward."),
        }
        line = {"seed": seed, "truth": truth}
        for how, ends in found.items():
            line[how] = {n: [round(float(v), 4) for v in e] for n, e in ends.items()}
        lines.append(line)
    return lines


def drift_table(lines: list[dict]) -> str:
    rows = [
        "| parameter | by | 90 % interval holds the truth | half-width, median (nm) | "
        "rms error of the median (nm) |",
        "|---|---|---|---|---|",
    ]
    labels = {"alone": "the model alone", "process": "**process about the model**"}
    for name in KNOWN:
        for how, label in labels.items():
            low, middle, high = np.array([line[how][name] for line in lines]).T
            truth = np.array([line["truth"][name] for line in lines])
            holds = int(np.sum((low <= truth) & (truth <= high)))
            rows.append(
                f"| {name} | {label} | {holds} of {len(lines)} | "
                f"{np.median(high - low) / 2:.3f} | {np.sqrt(np.mean((middle - truth) ** 2)):.3f} |"
            )
    return "\n".join(rows)


# --- which law ----------------------------------------------------------------------------------

SIGMA, MOST, SURE = 4.0, 30, 0.95  # noise (nm); pulses; when a law counts as known
CANDIDATES = np.linspace(-2.0, 1.0, 46)[:, None]  # log10 of the length of a pulse (s)


class Power(eqx.Module):
    """r = size t^exponent: a wall that creeps."""

    size_nm: Array = micjax.parameter(default=100.0)
    exponent: Array = micjax.parameter(default=0.25)

    def __call__(self, log_t):
        return self.size_nm * 10.0 ** (self.exponent * log_t)


class Logarithm(eqx.Module):
    """r = size + rate log10 t: activated over barriers of many heights."""

    size_nm: Array = micjax.parameter(default=100.0)
    rate_nm: Array = micjax.parameter(default=30.0)

    def __call__(self, log_t):
        return self.size_nm + self.rate_nm * log_t


class Saturation(eqx.Module):
    """r = size (1 - exp(-t / time)): it stops where the field of the tip ends."""

    size_nm: Array = micjax.parameter(default=100.0)
    log_time: Array = micjax.parameter(default=-0.5)  # log10 of seconds

    def __call__(self, log_t):
        return self.size_nm * -jnp.expm1(-(10.0 ** (log_t - self.log_time)))


LAWS = {
    "power": (
        Power(),
        {"size_nm": dist.LogNormal(np.log(100.0), 0.3), "exponent": dist.Uniform(0.1, 0.5)},
    ),
    "logarithm": (
        Logarithm(),
        {"size_nm": dist.LogNormal(np.log(100.0), 0.3), "rate_nm": dist.Uniform(10.0, 50.0)},
    ),
    "saturation": (
        Saturation(),
        {"size_nm": dist.LogNormal(np.log(100.0), 0.3), "log_time": dist.Uniform(-1.5, 0.3)},
    ),
}


def law(name: str) -> micjax.InverseProblem:
    forward, priors = LAWS[name]
    unknown = {f"forward.{n}": prior for n, prior in priors.items()}
    noise = {"noise.sigma": dist.LogNormal(np.log(SIGMA), 0.3)}
    return micjax.InverseProblem(forward, micjax.Gaussian(SIGMA), unknown | noise)


def process_of(name: str) -> micjax.InverseProblem:
    """The law, a process for the few nm that it may leave over, and noise."""
    amplitude = {"forward.kernel.amplitude": dist.LogNormal(np.log(1.0), 0.7)}
    return gp.process([-2.0], [1.0], mean=law(name), priors=amplitude, y_scale=1.0)


def true_law(name: str, seed: int):
    """A draw of the law from its priors."""
    problem = law(name)
    keys = jax.random.split(jax.random.key(seed), 3)
    names = [n for n in problem.priors if n.startswith("forward.")]
    drawn = {n: problem.priors[n].sample(k) for n, k in zip(names, keys, strict=False)}
    return problem.at(drawn)


def learn(name: str, seed: int, choose: str) -> dict:
    """The probabilities of the laws after each pulse; 3 pulses evenly spread, then chosen ones."""
    truth, rng = true_law(name, seed), np.random.default_rng(seed)
    place = [0, 22, 45]

    def measured(i: int) -> float:
        clean = float(truth.forward(jnp.asarray(CANDIDATES[i, 0])))
        return clean + rng.normal(0.0, SIGMA)

    y = [measured(i) for i in place]
    data = gp.buffered(CANDIDATES[place], np.array(y))
    key = jax.random.key(1000 + seed)
    known = hypotheses.begin({n: process_of(n) for n in LAWS}, *data, CANDIDATES, key)
    chances = [hypotheses.probabilities(known)]
    while len(place) < MOST:
        if choose == "information":
            # a pulse may be repeated: the noise is new each time
            i = int(best_allowed(np.asarray(hypotheses.information(known)), True)[0])
        else:
            i = int(rng.integers(len(CANDIDATES)))
        place.append(i)
        y.append(measured(i))
        key, now = jax.random.split(key)
        known = hypotheses.tell(known, CANDIDATES[i], y[-1], now)
        chances.append(hypotheses.probabilities(known))
    sure = [c[name] > SURE for c in chances]
    after = 0 if all(sure) else len(sure) - int(np.argmin(sure[::-1]))
    final = chances[-1]
    return {
        "law": name,
        "seed": seed,
        "choose": choose,
        "picked": max(final, key=final.get),
        "chance": round(final[name], 4),
        "sure_after": 3 + after if after < len(sure) else None,  # and from then on
        "chances": [[round(c[n], 4) for n in LAWS] for c in chances],
        "place": place,
    }


def law_table(lines: list[dict]) -> str:
    rows = [
        f"| pulses chosen | runs | true law picked after {MOST} | sure (> {SURE}) of the true law "
        "| pulses to that (runs) | sure of a wrong one |",
        "|---|---|---|---|---|---|",
    ]
    for choose in dict.fromkeys(line["choose"] for line in lines):
        mine = [line for line in lines if line["choose"] == choose]
        right = sum(line["picked"] == line["law"] for line in mine)
        counts = [line["sure_after"] or np.inf for line in mine]
        wrong = sum(
            max(c for n, c in zip(LAWS, line["chances"][-1], strict=True) if n != line["law"])
            > SURE
            for line in mine
        )
        ends = ", ".join(
            f"{'never' if np.isinf(n) else f'{n:g}'} ({counts.count(n)})" for n in sorted({*counts})
        )
        rows.append(
            f"| {choose} | {len(mine)} | {right} | {int(np.sum(np.isfinite(counts)))} | "
            f"{ends} | {wrong} |"
        )
    return "\n".join(rows)


# --- figure -------------------------------------------------------------------------------------


def figure(folder: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    canvas, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    truth, x_nm, y, drifted = scan(1)
    clean = y - drifted
    axes[0].plot(x_nm, y, "k.", ms=3, label="measured")
    axes[0].plot(x_nm, clean, "tab:gray", lw=0.8, label="without drift")
    process = gp.process([-REACH_NM], [REACH_NM], mean=edge.problem(), y_scale=0.1)
    data = gp.buffered(x_nm[:, None], y)
    found = intervals(process, *data, jax.random.key(1), "forward.mean.forward.")
    alone = of_model_alone(jnp.asarray(x_nm), jnp.asarray(y), jax.random.key(1))
    for ends, colour, label in ((alone, "tab:red", "alone"), (found, "tab:blue", "process")):
        values = {n: float(e[1]) for n, e in ends.items()}
        at = np.asarray(edge.problem(**values).forward(jnp.asarray(x_nm)))
        axes[0].plot(x_nm, at, color=colour, lw=1.2, label=f"edge by: {label}")
    axes[0].set(xlabel="x (nm)", ylabel="signal", title="an edge under drift")
    axes[0].legend(fontsize=7)
    for i, (ends, colour) in enumerate(((alone, "tab:red"), (found, "tab:blue"))):
        for j, name in enumerate(KNOWN):
            low, middle, high = ends[name] - truth[name]
            axes[1].errorbar(
                [j + 0.2 * i], [middle], [[middle - low], [high - middle]], fmt="o", color=colour
            )
    axes[1].axhline(0.0, color="k", lw=0.8)
    axes[1].set_xticks([0.1, 1.1], list(KNOWN))
    axes[1].set_title("90 % intervals, less the truth (nm)")
    for choose, style in (("information", "-"), ("random", ":")):
        run = learn("power", 9, choose)  # one of the hardest
        for n, chance in zip(LAWS, np.array(run["chances"]).T, strict=True):
            colour = {"power": "tab:blue", "logarithm": "tab:orange", "saturation": "tab:green"}[n]
            label = n if choose == "information" else None
            axes[2].plot(np.arange(3, MOST + 1), chance, style, color=colour, label=label)
    axes[2].set(xlabel="pulses", ylabel="probability", title="laws; dotted: random pulses")
    axes[2].legend(fontsize=7)
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / "structured_mean.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["drift", "laws", "table", "figure"])
    parser.add_argument("--repeats", type=int, default=100, help="scans under drift")
    parser.add_argument("--runs", type=int, default=20, help="of each way to choose pulses")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if given.what == "figure":
        return figure(given.out)
    if given.what == "table":
        for name, make in (("drift", drift_table), ("laws", law_table)):
            lines = (given.out / f"{name}.jsonl").read_text().splitlines()
            print(make([json.loads(line) for line in lines]), end="\n\n")
        return None
    if given.what == "drift":
        lines = under_drift(given.repeats)
        table = drift_table(lines)
    else:
        lines = [
            learn(list(LAWS)[seed % len(LAWS)], seed, choose)
            for choose in ("information", "random")
            for seed in range(given.runs)
        ]
        table = law_table(lines)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.what}.jsonl").write_text("".join(json.dumps(n) + "\n" for n in lines))
    print(table)


if __name__ == "__main__":
    main()
