"""What each command of the command line does -> its exit status; `micjax.run.cli` has its help."""

import argparse
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import jax
import yaml

from micjax.inference.calibration.certificate import certify
from micjax.inference.calibration.stored import store
from micjax.instruments import consolidate
from micjax.report.table import plain_table
from micjax.run.info import about_network, info
from micjax.run.jobs.dealt.elsewhere import workers_of
from micjax.run.jobs.dealt.sweep import settings_of, sweep
from micjax.run.jobs.kinds import RUNS
from micjax.run.lifecycle import carry_out, precision_of
from micjax.run.logs import Asked
from micjax.run.plans.plan import make_plan, read_plan, with_settings
from micjax.run.registry import find
from micjax.run.status import status
from micjax.run.template import template

# --- plans -------------------------------------------------------------------------------------


def demo(arguments: argparse.Namespace, asked: Asked) -> int:
    return _run({"problem": arguments.problem}, arguments, asked)


def fit(arguments: argparse.Namespace, asked: Asked) -> int:
    given = {"problem": arguments.problem, "file": arguments.file}
    options = {n: getattr(arguments, n) for n in ("channel", "net")}
    if options := {n: value for n, value in options.items() if value is not None}:
        given["options"] = options
    return _run(given, arguments, asked)


def simulate(arguments: argparse.Namespace, asked: Asked) -> int:
    given = {"kind": "simulate", "what": arguments.what, "structure": arguments.structure}
    return _run(given, arguments, asked)


def train(arguments: argparse.Namespace, asked: Asked) -> int:
    return _run({"kind": "train", "problem": arguments.problem}, arguments, asked)


def run(arguments: argparse.Namespace, asked: Asked) -> int:
    path = pathlib.Path(arguments.plan)
    return _run(read_plan(path), arguments, asked, path.read_bytes())


def explore(arguments: argparse.Namespace, asked: Asked) -> int:
    given = {"kind": "explore"} | read_plan(arguments.plan)
    if given["kind"] != "explore":
        raise ValueError(f"{arguments.plan}: kind is {given['kind']!r}; micjax run takes all kinds")
    return _run(given, arguments, asked)


def validate(arguments: argparse.Namespace, asked: Asked) -> int:
    plan = make_plan(with_settings(read_plan(arguments.plan), arguments.set), arguments.plan)
    with precision_of(plan):
        description = RUNS[plan.kind](plan, asked).describe()
    print(f"{arguments.plan} is valid: {description}")
    return 0


def _run(
    start: Mapping[str, Any],
    arguments: argparse.Namespace,
    asked: Asked,
    as_given: bytes | None = None,
) -> int:
    """The plan of `start`, then --set, then --out."""
    given = with_settings(start, arguments.set)
    if getattr(arguments, "sweep", None):
        trust = asked.trust or [str(given.get("problem", "micjax")).partition(".")[0]]
        workers, settings = workers_of(asked.processes, asked.on), settings_of(arguments.sweep)
        out = given.pop("out", None)
        how = arguments.out or out, workers, asked.resume, trust
        return sweep(given, settings, *how, lambda plan: RUNS[plan.kind](plan, asked))
    given |= {} if arguments.out is None else {"out": arguments.out}
    plan = make_plan(given, getattr(arguments, "plan", "command line"))
    if asked.in_doubt and plan.kind != "explore":
        raise ValueError(f"--in-doubt is for explorations; this is a plan to {plan.kind}")
    with precision_of(plan):
        text = yaml.safe_dump(given, sort_keys=False).encode() if as_given is None else as_given
        return carry_out(RUNS[plan.kind](plan, asked), asked, text)


def init(arguments: argparse.Namespace, asked: Asked) -> int:
    text = template(find(arguments.problem))
    if arguments.file is None:
        print(text, end="")
        return 0
    try:
        with open(arguments.file, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{arguments.file} is there already; give another name") from None
    print(f"plan: {arguments.file}")
    return 0


# --- what there is -----------------------------------------------------------------------------


def certify_problem(arguments: argparse.Namespace, asked: Asked) -> int:
    entry = find(arguments.problem)
    path = pathlib.Path(arguments.out or f"{entry.short}-certificate.json")
    if path.exists() and not asked.resume:
        raise ValueError(f"{path} is there already: --resume goes on with it, --out names another")
    certificate = certify(
        entry.module,
        arguments.draws,
        key=jax.random.key(arguments.seed),
        seconds=arguments.seconds,
        path=path,
        resume=asked.resume,
    )
    print(plain_table(certificate.rows()))
    print("\n".join(["", *certificate.sentences(), f"certificate: {path}"]))
    if arguments.store:
        how = (
            f"micjax certify {arguments.problem} --draws {arguments.draws} --seed {arguments.seed}"
        )
        print(f"stored: {store(certificate, entry.module, how)}")
    return 0


def tell_info(arguments: argparse.Namespace, asked: Asked) -> int:
    print(info() if arguments.file is None else about_network(arguments.file))
    return 0


# --- journals ----------------------------------------------------------------------------------


def tell_status(arguments: argparse.Namespace, asked: Asked) -> int:
    print("\n".join(status(arguments.folder)))
    return 0


def watch(arguments: argparse.Namespace, asked: Asked) -> int:
    try:
        from micjax.run.watch import address_of, serve
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'micjax[live]'") from error
    if not 1 <= arguments.port <= 65535:
        raise ValueError(f"--port {arguments.port}: 1 to 65535 are allowed")
    token = secrets.token_urlsafe(32)
    server = serve(arguments.folder, arguments.port, token, not arguments.no_browser)
    address = address_of(arguments.port, token)
    # whoever knows this address can stop the instrument
    print(f"{address} shows {arguments.folder}; Ctrl-C ends the page, not the run", flush=True)
    server.run_until_shutdown()
    return 0


def consolidate_journal(arguments: argparse.Namespace, asked: Asked) -> int:
    path = arguments.file or f"{arguments.folder}/records.nxs"
    print(f"{consolidate(arguments.folder, path)} records: {path}")
    return 0
