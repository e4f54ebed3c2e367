"""Programs in processes of their own, which pretend to have several devices."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax

# Compile faster; later versions of XLA may not know them, and would abort.
FAST = [
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
][: 2 * (jax.__version_info__ < (0, 11))]

ROOT = pathlib.Path(__file__).parent.parent


def environment(devices: int = 8) -> dict[str, str]:
    """That of a process with so many devices, whose programs run once."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "XLA_FLAGS": " ".join([flags, *FAST]),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def run(*command: str, timeout: float | None = None, **more: str) -> Any:
    """What `python *command` prints, as JSON.

    Args:
        *command: The arguments of Python.
        timeout: After so many seconds it is an error.
        **more: Of the environment.
    """
    done = subprocess.run(
        [sys.executable, *command],
        env={**environment(), **more},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)
