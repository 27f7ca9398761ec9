"""The end of an exploration: maps, tables, figures and the report of what the learner believes."""

import csv
import logging
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import micjax.io as io
from micjax.active.learner.predictive import Prediction
from micjax.active.learner.signals import SD
from micjax.active.learner.space import SearchAxis
from micjax.inference.errors.laplace import Laplace, laplace
from micjax.inference.finite import NonFiniteError
from micjax.inference.solution import Solution
from micjax.io import Field, write_nexus
from micjax.report import exploration as figures
from micjax.report.default import default_figures
from micjax.report.text import readable_length
from micjax.run.folder import RunFolder
from micjax.run.jobs.explore import Exploration
from micjax.run.jobs.page import write_report

log = logging.getLogger("micjax")

ACROSS = 64  # points of a map or a profile along an axis
MANY, DRAWS = 16_384, 32  # points, from which on they are predicted by so many draws of the models
MOST = 262_144  # points of a map; of a larger file every second place, or third, ... is shown


class Maps(NamedTuple):
    """What is believed on a grid over two axes."""

    axes: tuple[np.ndarray, np.ndarray]
    step: int  # from one place of the candidates to the next one shown
    believed: dict[str, np.ndarray]  # as it stands in result.nxs
    acquisition: np.ndarray


def conclude(exploration: Exploration, folder: RunFolder, facts: dict[str, Any]) -> Solution:
    """Write measurements.csv, result.nxs, the figures and report.html.

    **Raises:** `OSError` when something cannot be written; `ValueError` before there are two data.
    """
    write_measurements(exploration, folder / "measurements.csv")
    maps = _maps(exploration) if len(exploration.source.space.axes) == 2 else None
    solution = _solution(exploration, maps)
    plan = exploration.plan.resolved()
    if solution.results:
        process = {"plan": plan, "provenance": facts, "metrics": dict(solution.metrics)}
        write_nexus(
            folder / "result.nxs", solution.results, title=_title(exploration), process=process
        )
    page = {
        "title": _title(exploration),
        "problem": exploration.plan.mean.problem if exploration.plan.mean else "Gaussian process",
        "data": exploration.plan.measure,
        "solution": solution,
        "provenance": facts,
        "plan": plan,
    }
    write_report(folder, _figures(exploration, maps, solution), **page)
    return solution


def _title(exploration: Exploration) -> str:
    goals = {
        "maximise": "The highest",
        "minimise": "The lowest",
        "find": f"The {exploration.plan.wanted} highest",
        "map": "A map of",
    }
    plan = exploration.plan
    level = f"Where is {plan.outcome} {plan.level}" if plan.goal == "level" else ""
    return level or f"{goals[plan.goal]} {plan.outcome}"


def write_measurements(exploration: Exploration, path: pathlib.Path) -> None:
    """All measured points as a table, in the order they came."""
    names, learner = exploration.source.space.names, exploration.learner
    outcome, (points, outcomes), sds = exploration.plan.outcome, learner.data, learner.told[:, 0, 1]
    columns = [*names, outcome, "predicted_sd_scaled", "spent_s"]
    if np.isfinite(sds).any():
        columns.append(outcome + SD)
    further = _further(exploration)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *further])
        noted = exploration.noted
        rows = zip(points, outcomes, noted.surprise, noted.seconds, sds, strict=False)
        for i, (numbers, *told) in enumerate(rows):
            settings = exploration.source.space.settings(numbers)
            others = [column[i] for column in further.values()]
            writer.writerow([*[*settings.values(), *told][: len(columns)], *others])


def _further(exploration: Exploration) -> dict[str, list]:
    """Columns about outcomes beside the main one, and about limits and the front."""
    learner = exploration.learner
    outcomes, values, told = learner.outcomes, learner.values, learner.told
    columns = {}
    for i, name in enumerate(outcomes.names[1:], start=1):
        columns[name] = values[:, i].tolist()
        if np.isfinite(told[:, i, 1]).any():
            columns[name + SD] = told[:, i, 1].tolist()
    if outcomes.limited:
        columns["feasible"] = outcomes.feasible(values).astype(int).tolist()
    if outcomes.several:
        on_front = np.isin(np.arange(len(values)), outcomes.front(values))
        columns["on_front"] = on_front.astype(int).tolist()
    return columns


# --- what is believed --------------------------------------------------------------------------


def _maps(exploration: Exploration) -> Maps:
    source, step = exploration.source, 1
    if source.shape is not None and len(source.shape) == 2:
        step = int(np.ceil(np.sqrt(max(np.prod(source.shape) / MOST, 1.0))))
        grid = source.space.candidates.reshape(*source.shape, 2)[::step, ::step]
        axes = grid[:, 0, 0], grid[0, :, 1]
    else:
        axes = tuple(_along(axis) for axis in source.space.axes[:2])
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    shape, grid = grid.shape[:2], grid.reshape(-1, 2)
    prediction = _predicted(exploration, grid)
    believed = {
        "median": prediction.median,
        "uncertainty": prediction.uncertainty,
        "lower_5_percent": prediction.lower,
        "upper_95_percent": prediction.upper,
    }
    for name in exploration.learner.outcomes.names[1:]:
        believed[f"{name}_median"] = _predicted(exploration, grid, name).median
    worth = exploration.learner.acquisition_at(grid).reshape(shape)
    return Maps(axes, step, {n: v.reshape(shape) for n, v in believed.items()}, worth)


def _predicted(
    exploration: Exploration, points: np.ndarray, outcome: str | None = None
) -> Prediction:
    draws = DRAWS if len(points) > MANY else None
    return exploration.learner.predict(points, draws, outcome)


def _along(axis: SearchAxis) -> np.ndarray:
    """Where something is drawn; of a billion whole numbers not at every one."""
    along = np.linspace(axis.lower, axis.upper, ACROSS)
    if not axis.whole:
        return along
    if axis.upper - axis.lower < ACROSS:
        return np.arange(axis.lower, axis.upper + 1.0)
    return np.unique(np.round(along))


def _solution(exploration: Exploration, maps: Maps | None) -> Solution:
    learner, plan = exploration.learner, exploration.plan
    belief = learner.belief
    problem = belief.states[0].problem
    errors = _errors(problem, belief.states[0])
    metrics = {"measurements": float(len(learner.data[1]))}
    if learner.outcomes.limited:
        metrics["feasible"] = float(learner.outcomes.feasible(learner.values).sum())
    if learner.outcomes.several:
        metrics["hypervolume"] = float(learner.outcomes.volumes(learner.values)[-1])
    elif learner.get_best_points():
        metrics["best"] = learner.get_best_points()[0][2][plan.outcome]
    metrics |= _against_truth(exploration, maps)
    if np.isfinite(exploration.noted.seconds).any():
        metrics["time_s"] = float(np.nanmax(exploration.noted.seconds))
    return Solution(
        problem=problem,
        laplace=errors,
        results=({} if maps is None else _fields(exploration, maps)) | front_fields(exploration),
        metrics=metrics,
        table=_table(exploration),
        statements=_statements(exploration, errors, maps),
    )


def _errors(problem, state) -> Laplace | None:
    # the weights of a network are no parameters that one reads
    names = [name for name in problem.unknowns() if name in problem.priors]
    try:
        return laplace(problem, state.observed, state.y, names)
    except NonFiniteError as error:
        log.warning("no Laplace errors: %s", error)
        return None


def _fields(exploration: Exploration, maps: Maps) -> dict[str, Field]:
    axes = tuple(
        io.FieldAxis(axis.name, values, axis.unit)
        for axis, values in zip(exploration.source.space.axes, maps.axes, strict=True)
    )
    outcome = exploration.plan.outcome
    return {n: Field(v, axes, "", f"{outcome}: {n}") for n, v in maps.believed.items()}


def front_fields(exploration: Exploration) -> dict[str, Field]:
    """The front: settings, every outcome as measured, and the ends of a 90 % interval of it."""
    learner = exploration.learner
    if not learner.outcomes.several:
        return {}
    space, rows = learner.space, learner.outcomes.front(learner.values)
    axes = (io.FieldAxis("point", np.arange(1.0, len(rows) + 1.0), ""),)
    points, columns = learner.data[0][rows], {}
    for i, axis in enumerate(space.axes if len(rows) else ()):
        columns[f"front_{axis.name}"] = points[:, i], axis.unit
    for i, name in enumerate(learner.outcomes.names if len(rows) else ()):
        expected = learner.predict(points, outcome=name)
        columns[f"front_{name}"] = learner.values[rows, i], ""
        columns[f"front_{name}_lower_5_percent"] = expected.lower, ""
        columns[f"front_{name}_upper_95_percent"] = expected.upper, ""
    return {n: Field(np.asarray(v, float), axes, u, n) for n, (v, u) in columns.items()}


def _against_truth(exploration: Exploration, maps: Maps | None) -> dict[str, float]:
    truth = exploration.source.truth
    if truth is None or not exploration.learner.outcomes.plain:  # which knows of one outcome
        return {}
    if maps is None:
        _, lower, upper, _ = _predicted(exploration, exploration.source.space.candidates)
        shown = truth
    else:
        lower, upper = (maps.believed[n] for n in ("lower_5_percent", "upper_95_percent"))
        shown = _shown(exploration, maps)
    known = np.isfinite(shown)  # of a curve that cannot be fitted there is none
    inside = np.mean(((lower <= shown) & (shown <= upper))[known])
    _, outcomes = exploration.learner.data
    metrics = {"coverage_of_90_percent": float(inside)}
    if exploration.plan.goal in ("maximise", "minimise"):
        sign = 1.0 if exploration.plan.goal == "maximise" else -1.0
        metrics["regret"] = float(np.nanmax(sign * truth) - np.max(sign * outcomes))
    if exploration.plan.goal == "find":
        metrics["found_of_wanted"] = float(np.sum(_wanted(exploration)))
    return metrics


def _shown(exploration: Exploration, maps: Maps) -> np.ndarray:
    """The truth where the maps are drawn."""
    source = exploration.source
    return source.truth.reshape(source.shape)[:: maps.step, :: maps.step]


def _wanted(exploration: Exploration) -> np.ndarray:
    """Which measurements are among the highest that are to be found, where all are known."""
    truth = exploration.source.truth
    _, outcomes = exploration.learner.data
    known = np.sort(truth[np.isfinite(truth)])
    return outcomes >= known[-min(exploration.plan.wanted, known.size)]


def _table(exploration: Exploration) -> list[dict[str, Any]]:
    """The best five measurements, or the front."""
    learner = exploration.learner
    outcomes, values = learner.outcomes, learner.values
    rows = outcomes.front(values) if outcomes.several else outcomes.order(values)[:5]
    settings = exploration.source.space.settings
    return [
        {"measurement": int(i) + 1, **settings(learner.data[0][i])}
        | dict(zip(outcomes.names, values[i], strict=True))
        | ({"feasible": bool(outcomes.feasible(values)[i])} if outcomes.limited else {})
        for i in rows
    ]


def _statements(exploration: Exploration, errors: Laplace | None, maps: Maps | None) -> list[str]:
    learner, lines = exploration.learner, []
    _, outcomes = learner.data
    lines.append(f"{len(outcomes)} measurements; stopped: {exploration.stop_reason}.")
    if exploration.plan.policy is not None:
        lines.append(
            f"{exploration.plan.policy} suggested what to measure; what is believed, and the "
            "acquisition, are those of the learner, who was told the same."
        )
    lines += learner.outcomes.told(learner.values)
    best = [] if learner.outcomes.several else learner.get_best_points()
    if best and exploration.plan.goal in ("maximise", "minimise", "find"):
        _, settings, told = best[0]
        plan = exploration.plan
        where = ", ".join(f"{n} = {_short(v)}" for n, v in settings.items())
        lines.append(f"Best {plan.outcome}: {_short(told[plan.outcome])} at {where}.")
    if maps is not None and maps.step > 1:
        lines.append(f"The maps hold one of {maps.step} x {maps.step} places of the file.")
    belief = learner.belief
    if belief.singular:
        lines.append("The kernel matrix was nearly singular: distrust the smallest uncertainties.")
    if exploration.plan.mean is not None and errors is not None:
        vague = [n for n, ok in errors.identified.items() if not ok and "mean" in n]
        lines += [f"{n} is not identified by these data." for n in vague]
    return lines


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --- figures -----------------------------------------------------------------------------------


def _figures(
    exploration: Exploration, maps: Maps | None, solution: Solution
) -> dict[str, Callable[[], Figure]]:
    believed = partial(_map_figure, maps=maps) if maps is not None else _slice_figure
    makers = {"What is believed": believed, "How it went": _course_figure}
    if exploration.learner.outcomes.several:
        makers = {"The front": _front_figure} | makers
    common = default_figures(solution, None, None, data=False)
    return {title: partial(make, exploration) for title, make in makers.items()} | common


def _readable(axis: SearchAxis) -> tuple[float, str]:
    """What to multiply an axis by for a figure, and its label: metres become nm or um."""
    scale, unit = readable_length(axis.unit, max(abs(axis.lower), abs(axis.upper)))
    return scale, f"{axis.name} ({unit})" if unit else axis.name


def _category_names(axis: SearchAxis) -> list[str]:
    return [str(name) for name in axis.categories]


def _map_figure(exploration: Exploration, maps: Maps) -> Figure:
    scales, labels = zip(*map(_readable, exploration.source.space.axes), strict=True)
    y, x = (v * scale for v, scale in zip(maps.axes, scales, strict=True))
    half = [0.5 * (v[-1] - v[0]) / max(len(v) - 1, 1) for v in (y, x)]
    extent = (x[0] - half[1], x[-1] + half[1], y[-1] + half[0], y[0] - half[0])
    outcome = exploration.plan.outcome
    panels = {
        f"{outcome}: predicted median": maps.believed["median"],
        "uncertainty (scaled)": maps.believed["uncertainty"],
        # of a logarithm the low half says nothing, and reaches to minus infinity
        f"acquisition: {exploration.learner.settings.acquisition}": np.maximum(
            maps.acquisition, np.median(maps.acquisition)
        ),
    }
    for name in exploration.learner.outcomes.names[1:]:
        panels[f"{name}: predicted median"] = maps.believed[f"{name}_median"]
    if exploration.source.truth is not None:
        panels[f"{outcome}: all of the file"] = _shown(exploration, maps)
    points, _ = exploration.learner.data
    following = np.unravel_index(int(np.nanargmax(maps.acquisition)), maps.acquisition.shape)
    where = np.asarray([y[following[0]], x[following[1]]])
    named = tuple(map(_category_names, exploration.source.space.axes))
    return figures.maps(panels, extent, labels, points * scales, where, named)


def _slice_figure(exploration: Exploration) -> Figure:
    learner, space = exploration.learner, exploration.source.space
    points, outcomes = learner.data
    best = learner.leading
    profiles = []
    scales, labels = zip(*map(_readable, space.axes), strict=True)
    for i, scale in enumerate(scales):
        along = _along(space.axes[i])
        line = np.repeat(best[None], len(along), axis=0)
        line[:, i] = along
        measured = {"points": points[:, i] * scale, "outcomes": outcomes}
        measured["categories"] = _category_names(space.axes[i])
        profiles.append({"x": along * scale, **learner.predict(line)._asdict(), **measured})
    return figures.slices(profiles, labels, exploration.plan.outcome)


def _front_figure(exploration: Exploration) -> Figure:
    learner = exploration.learner
    outcomes, values = learner.outcomes, learner.values
    rows, which = outcomes.front(values), outcomes.objectives
    points = learner.data[0][rows]
    intervals = [
        learner.predict(points, outcome=outcomes.names[i])[1:3] if len(rows) else ((), ())
        for i in which
    ]
    return figures.front(
        values[:, which],
        outcomes.feasible(values),
        rows,
        np.asarray(intervals, float),
        [outcomes.names[i] for i in which],
    )


def _course_figure(exploration: Exploration) -> Figure:
    sign = -1.0 if exploration.plan.goal == "minimise" else 1.0
    learner = exploration.learner
    values, wanted = learner.values, learner.outcomes
    kept = np.where(wanted.feasible(values), sign * values[:, 0], -np.inf)
    best = np.maximum.accumulate(kept)
    best = sign * np.where(np.isfinite(best), best, np.nan)
    truth, goal = exploration.source.truth, exploration.plan.goal
    known = truth is not None and goal in ("maximise", "minimise") and wanted.plain
    optimum = float(sign * np.nanmax(sign * truth)) if known else None
    seconds = np.asarray(exploration.noted.seconds)
    label = "best outcome so far" if not wanted.limited else "best feasible outcome so far"
    if wanted.several:
        best, label = wanted.volumes(values), "hypervolume"
    if truth is not None and goal == "find":
        best = np.cumsum(_wanted(exploration))
        label = f"found of the {exploration.plan.wanted} highest"
    return figures.course(
        best,
        np.asarray(exploration.noted.surprise),
        seconds if np.isfinite(seconds).any() else None,
        optimum,
        label,
    )
