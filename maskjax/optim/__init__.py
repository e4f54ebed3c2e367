"""Optax transformations that keep a mask while weights train, or move it.

- `mask_updates` freezes what a mask removes; `keep_sparse` keeps it at zero.
- `prune` cuts a mask down while training; `set_` and `rigl` drop and grow.
- `with_gradients` wraps the optimizer around them: it hands them gradients, and resets
  moments where the mask changed. `mask_gradients` zeroes those of removed weights.
- `mask_of` reads the mask from the optimizer's state, `with_mask` sets it.
- `check` raises if parameters are not as their masks leave them.

They go last in a chain, where they see what will be added to the parameters; the page
on optax says where they go with each of its optimizers and wrappers. Removed
weights are exactly zero after every step, and frozen ones never change, bit for bit,
under any optimizer, with momentum and weight decay, as long as parameters are finite
(`mask_updates` says what becomes of subnormal ones).

>>> import optax
>>> from maskjax import optim
>>> params = {"w": jnp.array([[4.0, 3.0], [2.0, 1.0]])}
>>> schedule = optax.linear_schedule(1.0, 0.25, 4)  # the density after each step
>>> optimizer = optax.chain(optax.adamw(0.1), optim.prune(schedule))
>>> state, update = optimizer.init(params), jax.jit(optimizer.update)
>>> for _ in range(4):
...     updates, state = update(params, state, params)
...     params = optax.apply_updates(params, updates)
>>> optim.mask_of(state)
{'w': Array([[ True, False],
       [False, False]], dtype=bool)}
>>> params["w"][1]
Array([0., 0.], dtype=float32)
"""

from maskjax.optim._check import check
from maskjax.optim._fixed import keep_sparse, mask_updates
from maskjax.optim._gradients import mask_gradients, reset_moments, with_gradients
from maskjax.optim._prune import prune
from maskjax.optim._rewire import rigl, set_
from maskjax.optim._state import MaskState, MaskWarning, mask_of, with_mask

__all__ = [
    "MaskState",
    "MaskWarning",
    "check",
    "keep_sparse",
    "mask_gradients",
    "mask_of",
    "mask_updates",
    "prune",
    "reset_moments",
    "rigl",
    "set_",
    "with_gradients",
    "with_mask",
]
