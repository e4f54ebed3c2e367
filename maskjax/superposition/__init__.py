"""Many masks at once: which of them fits this input?

Run a network under the mean of all masks. One backward pass then says towards which
mask the objective falls fastest, among thousands of tasks. An objective is low for the
right mask: `logit_entropy`, `superfluous`, or a function of your own.

Use `infer` for images that may each be of another task. `one_shot` (one gradient),
`binary` (a few) and `exhaustive` (every mask tried) answer for one batch of one task.

If the masks of a bank are on several devices, each device asks its own. K numbers are
gathered; `binary` and `gradient` also mix masks, as in `stacking.mix`.

    >>> params = {"w": jnp.array([[9.0, 0.0], [9.0, 9.0]])}
    >>> stack = {"w": jnp.array([[[True], [False]], [[False], [True]]])}  # rows of w
    >>> def objective(params, x):
    ...     return superposition.logit_entropy(x @ params["w"])
    >>> tasks = bank.from_stack(stack)
    >>> superposition.one_shot(objective, params, tasks, jnp.ones((1, 2)))
    Array(0, dtype=int32)
"""

from maskjax.superposition._inference import (
    binary,
    exhaustive,
    gradient,
    infer,
    one_shot,
)
from maskjax.superposition._objectives import logit_entropy, superfluous

__all__ = [
    "binary",
    "exhaustive",
    "gradient",
    "infer",
    "logit_entropy",
    "one_shot",
    "superfluous",
]
