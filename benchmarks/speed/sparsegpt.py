"""How fast is a large kernel pruned by SparseGPT, beside the paper's loop?

Half of its weights stay, chosen in blocks of 128 inputs, or 2 of every 4. Baselines:
the paper's loop, with an inverse and an update of the block after every input, in NumPy
and, where it is installed, in torch. The limit is a product of matrices with as many
floating-point operations as a Cholesky factor and the change of every weight by every
earlier one of its output take.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks._timing import Contestant
from benchmarks.speed import _case
from maskjax.calibration import Statistics
from maskjax.recipes import sparsegpt
from maskjax.structure import NofM
from maskjax.where import Axes

REPEATS, SECONDS = 5, 20.0
BLOCK, DAMPING = 128, 0.01
# Inputs, outputs, and whether 2 of every 4 stay.
FULL = [(1024, 1024, False), (1024, 1024, True)]
FULL += [(4096, 4096, False), (4096, 4096, True)]
QUICK = [(256, 32, False), (256, 32, True)]


def loop(w: Any, upper: Any, best: Callable[[Any], Any], *, pattern: bool) -> Any:
    """The weights that are left, by the paper's algorithm 1, in NumPy or torch.

    Args:
        w: [out, d].
        upper: [d, d], the Cholesky factor of the inverse.
        best: From scores to 1 for the half that is kept, of all or, if `pattern`, of
            each row.
        pattern: Whether 2 of every 4 stay, or half of each block.
    """
    w, d = 1 * w, w.shape[1]
    for start in range(0, d, BLOCK):
        stop = min(start + BLOCK, d)
        own, inner = 1 * w[:, start:stop], upper[start:stop, start:stop]
        sizes, errors = inner.diagonal()[None], 0 * own
        keep = 0 * own if pattern else best((own / sizes) ** 2)
        for j in range(stop - start):
            if pattern and j % 4 == 0:
                four = slice(j, j + 4)
                keep[:, four] = best((own[:, four] / sizes[:, four]) ** 2)
            left = own[:, j] * keep[:, j]
            errors[:, j] = (own[:, j] - left) / inner[j, j]
            own[:, j:] -= errors[:, j, None] * inner[None, j, j:]
            own[:, j] = left
        w[:, start:stop] = own
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return w


def _numpy(w: np.ndarray, gram: np.ndarray, *, pattern: bool) -> np.ndarray:
    def best(scores):
        middle = scores.size // 2 if not pattern else 2
        axis = 1 if pattern else None
        at = np.partition(scores, middle, axis=axis)
        at = at[:, middle : middle + 1] if pattern else at[middle]
        return (scores >= at).astype(scores.dtype)

    damped = gram + DAMPING * np.diag(gram).mean() * np.eye(len(gram), dtype="f4")
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    return loop(w.T, upper, best, pattern=pattern).T


def _torch(w: np.ndarray, gram: np.ndarray, *, pattern: bool) -> Iterator[Contestant]:
    """The same in torch, in the calls of the authors' code, where it is installed."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    def best(scores):
        if pattern:
            two = torch.topk(scores, 2, dim=1)[1]
            return torch.zeros_like(scores).scatter_(1, two, 1)
        at = torch.sort(scores.flatten())[0][scores.numel() // 2]
        return (scores >= at).to(scores.dtype)

    kernel, met = torch.from_numpy(w.T.copy()), torch.from_numpy(gram)

    def run():
        damped = met + DAMPING * met.diagonal().mean() * torch.eye(len(met))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        upper = torch.linalg.cholesky(inverse, upper=True)
        return loop(kernel, upper, best, pattern=pattern).T.numpy()

    yield Contestant("torch, the paper's loop", run)


def case(d: int, out: int, pattern: bool) -> _case.Case:  # noqa: FBT001
    """One kernel."""
    rng = np.random.default_rng(0)
    mixing = np.eye(d) + rng.normal(0, 0.5 / d**0.5, (d, d))
    x = (rng.normal(size=(2 * d, d)) @ mixing).astype("float32")
    w, gram = rng.normal(size=(d, out)).astype("float32"), x.T @ x
    structure = NofM(2, 4) if pattern else None
    density = None if pattern else 0.5

    def ours(w, gram):
        axes = Axes(inputs=(0,), outputs=(1,))
        stats = {"w": Statistics(gram, axes, (d, out))}
        how: dict[str, Any] = {"structure": structure, "damping": DAMPING}
        how |= {"density": density, "block": BLOCK}
        return sparsegpt.prune({"w": w}, stats, **how).params["w"]

    def agree(results):
        # In float32 a near tie may fall either way, and changes what comes after it.
        found = {}
        for name, left in results.items():
            if name != "products":
                change = np.asarray(left, "float64") - w
                found[name] = np.sum(change * (gram @ change))
                # The paper's loop compares with a threshold, and keeps all ties.
                more = np.count_nonzero(left) - w.size // 2
                assert 0 <= more <= (1e-5 * w.size if "loop" in name else 0), name
        first, *others = found.values()
        np.testing.assert_allclose(others, first, rtol=0.01)

    rows = round((d * d / 3 + out * d) / (2 * out))
    given = jnp.asarray(w), jnp.asarray(gram)
    contestants = [
        _case.contestant("sparsegpt.prune", ours, *given),
        Contestant("NumPy, the paper's loop", lambda: _numpy(w, gram, pattern=pattern)),
        *_torch(w, gram, pattern=pattern),
        _case.contestant("products", jnp.matmul, jnp.ones((rows, d)), given[0]),
    ]
    kind = "2 of every 4" if pattern else "half of each block"
    shape = {"shape": [d, out], "density": 0.5, "structure": repr(structure)}
    return _case.of(f"{d} x {out}, {kind}", contestants, agree, **shape)
