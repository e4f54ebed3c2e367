"""Short runs compile for longer than they compute: LLVM is asked for less.

Imported before anything that starts JAX's backends, which read the flags once. It takes
a third less, and products and convolutions, which are compiled already, as long as
ever. `--full` optimizes as JAX does by default.
"""

import os
import pathlib
import sys

FLAGS = (
    "--xla_backend_optimization_level=1",
    "--xla_cpu_parallel_codegen_split_count=1",  # other demonstrations fill the cores
)


def flags() -> str:
    """What XLA was told, of whoever began this process."""
    return os.environ.get("XLA_FLAGS", "")


if pathlib.Path(sys.argv[0]) == pathlib.Path(__file__).with_name("__main__.py"):
    if "--full" not in sys.argv:
        # A flag of the user's comes later and is obeyed.
        os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])
