"""MaskLLM: learn which n of every m weights to keep (Fang et al., NeurIPS 2024).

"MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models",
arXiv:2409.17481. The weights of a trained network stay as they are; a pattern such as
2:4 is learned by descending the loss itself, where Wanda and SparseGPT look at one
kernel at a time.

Algorithm (numbers match the comments in the code):
  1. every group of m consecutive inputs of an output has a logit for each of its
     patterns, six for 2:4. They are drawn at random; a mask that is known, as from
     Wanda or SparseGPT, raises the logits of the patterns that are like it
  2. each step draws a mix of the patterns of every group, softmax((logits * scale +
     Gumbel noise) / temperature), and the loss is that of the weights under the mix.
     While training goes on, the temperature falls from 4 to 0.05 and the scale rises
     from 100 to 500, both linearly: mixes become patterns, and random ones certain
  3. a multiple of the squared norm of what is kept is subtracted from the loss; it
     falls to 0 linearly (the authors begin at 1e-5)
  4. in the end each group keeps the pattern with the highest logit: exactly n of m
The authors train the logits of LLaMA-2 7B for 2,000 steps of 256 sequences, by Adam at
5e-4, from the mask of SparseGPT, and leave embeddings and the last layer dense.

Departures from the paper:
  * the deviation by which the prior's strength is multiplied is that of the
    distribution, not of the sample
  * noise is drawn such that it is always finite

Logits take 6 / 4 of the weights' memory for 2:4, and 70 / 8 for 4:8.

    >>> import optax
    >>> from maskjax.recipes import maskllm
    >>> params = {"w": jnp.array([[2.0], [2.0], [1.0], [-1.0]])}
    >>> x = jnp.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    >>> def loss(logits, progress, key):
    ...     how = {"progress": progress, "key": key}
    ...     soft = maskllm.soft_mask(logits, params, **how)
    ...     out = x @ maskjax.apply(params, soft)["w"]
    ...     task = jnp.mean((out - x @ params["w"]) ** 2)
    ...     weight = 1e-5 * (1 - progress)
    ...     return task - weight * maskllm.squared_norm(params, soft)
    >>> how = {"density": 0.5, "structure": structure.NofM(2, 4)}
    >>> prior = select.top_k(score.magnitude(params), **how)
    >>> logits = maskllm.init(params, prior, key=jax.random.key(0))
    >>> adam, slope = optax.adam(0.003), jax.jit(jax.grad(loss))
    >>> state = adam.init(logits)
    >>> for step, key in enumerate(jax.random.split(jax.random.key(1), 100)):
    ...     updates, state = adam.update(slope(logits, step / 100, key), state)
    ...     logits = optax.apply_updates(logits, updates)
    >>> bool(maskllm.mask(logits, params)["w"][2, 0])  # magnitude removed it
    True
"""

from maskjax.recipes.maskllm._logits import init
from maskjax.recipes.maskllm._masks import mask, soft_mask
from maskjax.recipes.maskllm._norm import squared_norm

__all__ = ["init", "mask", "soft_mask", "squared_norm"]
