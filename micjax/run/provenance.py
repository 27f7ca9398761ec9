"""Where a result comes from: code, versions, machine, inputs."""

import importlib.metadata
import os
import pathlib
import platform
import socket
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

import micjax

PACKAGES = ("micjax", "jax", "jaxlib", "flax", "optax", "numpyro", "equinox", "optimistix", "numpy")
VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def surroundings(argv: list[str], seed: int, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Code, versions, machine and inputs of a command."""
    return {
        "git": git_state(pathlib.Path(micjax.__file__).parent),
        "versions": versions(PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "devices": [str(d) for d in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "x64": bool(jax.config.jax_enable_x64),
        "environment": {n: os.environ[n] for n in VARIABLES if n in os.environ},
        "argv": argv,
        "seed": seed,
        "inputs": dict(inputs),
    }


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    return {name: version(name) for name in names}


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(folder: pathlib.Path) -> dict[str, Any] | None:
    """Commit of the checkout which `folder` is tracked in, and whether it was changed since."""
    try:
        # a .venv may lie in somebody else's repository: the package itself must be tracked
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(folder, "status", "--porcelain", "--", str(folder))
        return {"sha": _git(folder, "rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()
