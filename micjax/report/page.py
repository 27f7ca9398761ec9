"""The report: one HTML file with everything inside, which asks nothing of any network."""

import base64
import dataclasses
import html
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from micjax.core.files import replaced
from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.report.default import CONVERGENCE
from micjax.report.pictures import Picture
from micjax.report.table import cell, columns, is_number, number
from micjax.report.text import held_unknowns, spread_by, unknown_rows

MAX_ROWS = 50
STYLE = """
:root { --ink: #1f2a44; --soft: #5b6579; --line: #dde1e9; --wash: #f5f7fa; --accent: #1f5fa8;
  --alert: #b3402a; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.2rem 1.5rem 4rem; max-width: 60rem; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, ul { margin: .5rem 0; } ul { padding-left: 1.2rem; }
.meta { color: var(--soft); font-size: .92rem; margin: 0; }
.badge { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; font-size: .85rem;
  background: #e3efe9; color: #1d6b5f; }
.badge.alert { background: #f8e4df; color: var(--alert); }
.statements { background: var(--wash); border-left: 4px solid var(--accent); margin: 1.4rem 0;
  padding: .7rem 1.1rem; list-style: none; }
.statements li { margin: .25rem 0; }
.statements li.alert { color: var(--alert); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.number { text-align: right; } td.alert { color: var(--alert); font-weight: 600; }
figure { margin: 1rem 0 1.6rem; } figure img { max-width: 100%; height: auto; }
figcaption, .note { color: var(--soft); font-size: .9rem; }
code, pre { font: .86rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--wash); padding: .8rem 1rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); }
@media print { body { max-width: none; padding: 0; font-size: 11pt; }
  figure, tr, .statements { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .wide { overflow: visible; } }
"""


@dataclasses.dataclass(frozen=True)
class Page:
    """What a report tells."""

    title: str
    problem: str  # as the user called it
    data: str  # the file, or what else the data are
    solution: Solution
    pictures: Sequence[Picture]
    provenance: Mapping[str, Any]
    plan: Mapping[str, Any]
    log: str = ""
    truth: InverseProblem | None = None


def write_page(path: pathlib.Path, page: Page) -> pathlib.Path:
    """Write the report to `path`, whole or not at all.

    **Raises:** `OSError` when it cannot be written.
    """
    content = "\n".join(_document(page)).encode("utf-8")
    with replaced(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def _document(page: Page) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{_e(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    yield from _head(page)
    yield from _statements(page)
    yield from _result_table(page)
    yield from _figures([p for p in page.pictures if p.title != CONVERGENCE])
    yield from _unknowns(page)
    yield from _convergence(page)
    yield from _provenance(page)
    yield "</body>\n</html>\n"


def _head(page: Page) -> Iterator[str]:
    facts = page.provenance
    status = str(facts.get("status", ""))
    alert = "" if status == "finished" else " alert"
    yield f"<h1>{_e(page.title)}</h1>"
    yield (
        f'<p class="meta"><span class="badge{alert}">{_e(status)}</span> '
        f"problem <code>{_e(page.problem)}</code> · data: {_e(page.data)}<br>"
        f"{_e(facts.get('start', ''))} · {_e(_duration(facts.get('wall_s')))} on "
        f"{_e(facts.get('device_kind', ''))} · "
        f"micjax {_e((facts.get('versions') or {}).get('micjax', ''))}</p>"
    )


def _duration(seconds: Any) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _statements(page: Page) -> Iterator[str]:
    if page.solution.statements:
        items = "".join(f"<li{_alert(s)}>{_e(s)}</li>" for s in page.solution.statements)
        yield f'<ul class="statements">{items}</ul>'


def _alert(sentence: str) -> str:
    words = (
        "not identified",
        "NOT IDENTIFIED",
        "distrust",
        "do not agree",
        "may not have",
        "stopped after",
    )
    return ' class="alert"' if any(word in sentence for word in words) else ""


def _result_table(page: Page) -> Iterator[str]:
    if not page.solution.table and not page.solution.metrics:
        return
    yield "<h2>Result</h2>"
    if page.solution.table:
        yield _table(page.solution.table)
    if page.solution.comparison:
        yield _table(page.solution.comparison)
    if page.solution.metrics:
        pairs = (
            f"{_e(n.replace('_', ' '))} <b>{_e(cell(v))}</b>"
            for n, v in page.solution.metrics.items()
        )
        yield f'<p class="note">{" · ".join(pairs)}</p>'


def _figures(pictures: Sequence[Picture]) -> Iterator[str]:
    if pictures:
        yield "<h2>Figures</h2>"
    for picture in pictures:
        yield f"<h3>{_e(_heading(picture.title))}</h3>"
        yield _figure(picture)


def _heading(title: str) -> str:
    words = title.replace("_", " ")
    return words[:1].upper() + words[1:]


def _figure(picture: Picture) -> str:
    if not picture.png:
        return f'<p class="note">{_e(picture.caption)}</p>'
    data = base64.b64encode(picture.png).decode()
    image = f'<img alt="{_e(picture.title)}" src="data:image/png;base64,{data}">'
    caption = f"<figcaption>{_e(picture.caption)}</figcaption>" if picture.caption else ""
    return f"<figure>{image}{caption}</figure>"


def _unknowns(page: Page) -> Iterator[str]:
    yield "<h2>Unknowns</h2>"
    rows = unknown_rows(page.solution, page.truth)
    yield _table(rows) if rows else "<p>There are none.</p>"
    by = spread_by(page.solution)
    told = any("errors" in r.metadata for r in page.solution.results.values())
    nothing = "Those of the maps stand in the result." if told else "None were made."
    notes = [f"Standard deviations from the {by}." if by else f"Standard deviations: {nothing}"]
    held = held_unknowns(page.solution)
    if held:
        notes.append(f"They hold with {', '.join(held)} held at the estimates.")
    if any("identified" in row for row in rows):
        notes.append(
            "Not identified: the data leave a direction free in which this unknown takes part, or "
            "its spread is above 0.9 of the prior's; the estimate is then mostly the prior."
        )
    yield f'<p class="note">{_e(" ".join(notes))}</p>'
    for direction in page.solution.laplace.flat_directions if page.solution.laplace else []:
        parts = ", ".join(f"{n} {number(v, 2)}" for n, v in direction.items())
        yield f'<p class="note">A direction without curvature: {_e(parts)}.</p>'
    if page.solution.posterior is not None:
        yield "<h3>Posterior draws</h3>"
        rows = page.solution.posterior.summary()
        yield _table(rows[:MAX_ROWS])
        if len(rows) > MAX_ROWS:
            yield f'<p class="note">The first {MAX_ROWS} of {len(rows)} numbers.</p>'
        draws = next(iter(page.solution.posterior.draws.values()))
        yield (
            f'<p class="note">{draws.shape[0]} chains of {draws.shape[1]} draws, '
            f"{page.solution.posterior.divergences} divergent transitions.</p>"
        )


def _convergence(page: Page) -> Iterator[str]:
    fit = page.solution.fit
    if fit is None or (not fit.steps and np.isfinite(fit.loss) and not fit.fault):
        return  # other stages tell how they ended
    yield "<h2>Convergence</h2>"
    yield (
        f"<p>{fit.steps} steps, lowest loss {_e(number(fit.loss, 7))} nats; "
        f"stop reason: {_e(': '.join(filter(None, (fit.stop_reason, fit.fault))))}.</p>"
    )
    for picture in page.pictures:
        if picture.title == CONVERGENCE:
            yield _figure(picture)
    if len(fit.starts_losses) > 1:
        best = float(np.min(fit.starts_losses))
        near = int(np.sum(fit.starts_losses < best + 0.5))
        yield (
            f"<p>{len(fit.starts_losses)} starts, {near} of them end within 0.5 nats of the "
            f"best; losses: {_e(', '.join(number(float(v)) for v in fit.starts_losses))}.</p>"
        )


def _provenance(page: Page) -> Iterator[str]:
    facts = page.provenance
    yield "<h2>Provenance</h2>"
    git = facts.get("git")
    code = "" if not git else git["sha"] + (" with local changes" if git["dirty"] else "")
    rows = {
        "command": " ".join(map(str, facts.get("argv", []))),
        "problem": (facts.get("problem") or {}).get("reference", ""),
        "seed": facts.get("seed"),
        "precision": "float64" if facts.get("x64") else "float32",
        "devices": ", ".join(facts.get("devices", [])),
        "host": facts.get("host"),
        "started": facts.get("start"),
        "ended": facts.get("end"),
        "commit": code or "not in a checkout",
    }
    for name, known in (facts.get("inputs") or {}).items():
        rows[f"input {name}"] = f"{known['path']}, {known['bytes']} bytes, sha256 {known['sha256']}"
    versions = facts.get("versions") or {}
    rows["versions"] = f"Python {facts.get('python')}, " + ", ".join(
        f"{n} {v}" for n, v in versions.items() if v
    )
    lines = "".join(
        f"<tr><th>{_e(n)}</th><td><code>{_e(cell(v))}</code></td></tr>" for n, v in rows.items()
    )
    yield f'<div class="wide"><table>{lines}</table></div>'
    plan = json.dumps(page.plan, indent=2, default=str)
    yield f"<details><summary>The plan, resolved</summary><pre>{_e(plan)}</pre></details>"
    if page.log:
        yield f"<details><summary>The log</summary><pre>{_e(page.log)}</pre></details>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = columns(rows)
    right = {h for h in heads if all(is_number(row.get(h)) for row in rows)}
    head = "".join(f"<th{_class(h in right)}>{_e(h)}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(_cell(h, row.get(h), h in right) for h in heads) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _cell(head: str, value: Any, right: bool) -> str:
    if head == "identified" and value is False:
        return '<td class="alert">not identified</td>'
    text = _e(cell(value))
    return (
        f"<td><code>{text}</code></td>" if head == "unknown" else f"<td{_class(right)}>{text}</td>"
    )


def _class(right: bool) -> str:
    return ' class="number"' if right else ""


def _e(value: Any) -> str:
    return html.escape(str(value))
