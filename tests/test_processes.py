"""The program of docs/devices.md, as two processes of four devices and as one of eight.

They write the same files, byte for byte, and nothing waits for ever.
"""

import re
import socket
import subprocess
import sys
import time

from tests.processes import ROOT, environment

PAGE = ROOT / "docs" / "devices.md"
# What the page says of masks that are not gathered.
REFUSED = """
for sharded in (masks, learned):
    for write in (storage.save, storage.append):
        try:
            write(f"{folder}/refused", sharded)
        except ValueError as error:
            print("refused" if "process_allgather" in str(error) else error)
try:
    storage.save_params(f"{folder}/refused", params, mask)
except ValueError as error:
    print("refused" if "process_allgather(params" in str(error) else error)
"""
# What the page on storage says of parameters that are gathered. One process too.
SPARSE = """
whole_params = gathered(params)
if jax.process_index() == 0:
    storage.save_params(f"{folder}/params.safetensors", whole_params, whole["chosen"])
    storage.save_params(f"{folder}/weights.safetensors", weights, None)
multihost_utils.sync_global_devices("parameters")
back, back_mask = storage.load_params(f"{folder}/params.safetensors", like=params)
wanted = gathered(jax.jit(maskjax.apply)(params, mask))
assert all((gathered(back)[name] == wanted[name]).all() for name in wanted)
again = gathered(jax.jit(maskjax.apply)(params, back_mask))
assert all((again[name] == wanted[name]).all() for name in wanted)
assert all(back[name].sharding == rows for name in wanted)
"""


def begin(folder, processes, tail=""):
    """Starts the program, once for each process."""
    folder.mkdir()
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    own = {**environment(8 // processes), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program + tail, address, str(processes)]
    return [
        subprocess.Popen(
            [*command, str(process), "."],
            env=own,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]


def ended(started):
    """What each process printed, if all end well within a minute."""
    end, printed = time.monotonic() + 60, []
    try:
        for process in started:
            left = max(0.1, end - time.monotonic())
            out, errors = process.communicate(timeout=left)
            assert process.returncode == 0, errors
            # Gloo says who is connected, now and then in two lines.
            words = ("Gloo", "connected peer ranks")
            lines = (x for x in out.splitlines() if not any(w in x for w in words))
            printed.append([*lines])
    finally:
        for process in started:
            process.kill()
    return printed


def test_two_processes_write_what_one_writes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    started = [*begin(one, 1, SPARSE), *begin(two, 2, REFUSED + SPARSE)]
    alone, *both = ended(started)
    assert alone == ["loss 0.922, tasks [0, 9]"]
    assert both == [alone + 5 * ["refused"]] * 2
    for name in (
        "masks.safetensors",
        "bank.safetensors",
        "params.safetensors",
        "weights.safetensors",
    ):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert not (two / "refused").exists()
