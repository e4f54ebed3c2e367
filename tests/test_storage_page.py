"""The program of docs/storage.md: a checkpoint comes in, and small files go out.

It runs in a process of its own, which pretends to have eight devices.
"""

import re

import pytest

from tests import processes

PAGE = processes.ROOT / "docs" / "storage.md"

# What the page's program leaves, beside each other.
_CHECKS = """
import json

bits = lambda x: np.asarray(x).tobytes()
with ocp.StandardCheckpointer() as checkpointer:
    dense = checkpointer.restore(f"{folder}/pruned", like)
kept = sum(int((x != 0).sum()) for x in dense.values())
total = sum(x.size for n, x in dense.items() if n != "bias")
print(json.dumps({
    "same": {n: bits(dense[n]) == bits(loaded[n]) == bits(pruned[n]) for n in like},
    "where": {n: loaded[n].sharding == like[n].sharding for n in like},
    "sharded": str(mask["up"].sharding.spec),
    "mask": [loaded_mask["bias"] is None, str(loaded_mask["up"].bits.sharding.spec)],
    "kept": kept - 256 - round(0.3 * total),
    "bits": 8 * os.path.getsize(f"{folder}/pruned.safetensors") / total,
}))
"""


def test_the_page_prunes_a_checkpoint_of_orbax(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found = processes.run("-c", program + _CHECKS, str(tmp_path))
    assert all(found["same"].values())
    assert all(found["where"].values())
    assert found["sharded"] == "P('x',)"
    assert found["mask"] == [True, "P('x', None)"]
    assert found["kept"] == 0
    bias = 8 * 512 / (2 * 256 * 512)
    assert found["bits"] == pytest.approx(0.3 * 16 + 1 + bias, rel=0.01)
