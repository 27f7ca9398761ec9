"""What is installed here, and what the file of a network holds, as text."""

import importlib.metadata
import importlib.util
import platform
import re

import jax

from micjax.nets.train import weights_of
from micjax.nets.unet import UNet
from micjax.nets.weights import load_network
from micjax.run.plans.solve import SolvePlan
from micjax.run.provenance import PACKAGES, version


def info() -> str:
    lines = [f"python      {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name:<11} {version(name) or 'not installed'}" for name in PACKAGES]
    lines.append("devices     " + ", ".join(f"{d} ({d.device_kind})" for d in jax.devices()))
    lines.append(
        f"precision   {SolvePlan.model_fields['precision'].default} unless the plan says more"
    )
    lines += [f"extra {name:<5} {state}" for name, state in extras().items()]
    return "\n".join(lines)


def about_network(file: str) -> str:
    """**Raises:** `FileNotFoundError`; `ValueError` for a file that is no network."""
    network, architecture, options, facts = load_network(file)
    number = sum(array.size for array in weights_of(network).values())
    lines = {"network": architecture, "weights": f"{number:,}"}
    if isinstance(network, UNet):
        lines["reach"] = f"{network.reach} px on each side, but for the means of the norms"
        lines["edges"] = f"multiples of {network.multiple} px"
    rows = [f"{name:<11} {value}" for name, value in lines.items()]
    for kind, values in (("made with", options), ("facts", facts)):
        rows += [kind, *(f"  {name} = {value}" for name, value in values.items())]
    return "\n".join(rows)


def extras() -> dict[str, str]:
    """Of every optional extra: installed, or which of its packages are missing."""
    try:
        requires = importlib.metadata.requires("micjax") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    wanted: dict[str, list[str]] = {}
    for line in requires:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        package = re.match(r"[\w.-]+(\[[\w,]+\])?", line)
        if extra and package:
            wanted.setdefault(extra[1], []).append(package[0])
    return {name: _state(name, packages) for name, packages in wanted.items()}


def _state(extra: str, packages: list[str]) -> str:
    # jax[cuda12] is there when its plugin is
    names = {p: f"jax-{extra}-plugin" if "[cuda" in p else p for p in packages}
    missing = [p for p, name in names.items() if version(name) is None]
    if not missing:
        return "installed"
    return f"not installed: {', '.join(missing)} (pip install 'micjax[{extra}]')"
