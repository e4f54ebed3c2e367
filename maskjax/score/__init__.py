"""Scores: how much each parameter is worth. Higher is kept.

Every function returns a tree of the parameters' structure whose leaves are floating
arrays of the parameter's shape, or `None` where `where` does not choose. Criteria that
need data take gradients in the parameters' dtypes and give scores in float32 at least.

    >>> score.magnitude({"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.zeros(2)})
    {'bias': None, 'kernel': Array([[1., 2.]], dtype=float32)}
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import checks, trees
from maskjax._core.trees import Array, Params, Predicate, Scores
from maskjax.score._objective import flow, mean_squares, objective, sensitivities, wide
from maskjax.where import kernels

__all__ = [
    "fisher",
    "grasp",
    "input_norms",
    "magnitude",
    "movement",
    "random",
    "snip",
    "synflow",
    "taylor",
    "wanda",
]


def magnitude(params: Params, *, where: Predicate = kernels) -> Scores:
    """The absolute value of each parameter.

    Args:
        params: Tree of arrays.
        where: Which leaves are scored.

    Returns:
        Scores |w|, in the parameters' dtypes.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing.

    Example:
        >>> score.magnitude({"w": jnp.array([[3.0, -4.0]])})
        {'w': Array([[3., 4.]], dtype=float32)}

    References:
        Han et al., "Learning both Weights and Connections for Efficient Neural
        Networks", NeurIPS 2015. arXiv:1506.02626, section 3.
    """
    weights = checks.chosen_leaves(params, where, fn="maskjax.score.magnitude")
    return trees.map_mask(jnp.abs, weights)


def movement(params: Params, initial: Params, *, where: Predicate = kernels) -> Scores:
    """How far each parameter has come from where it began.

    Args:
        params: Tree of arrays.
        initial: The same parameters earlier, of the same structure and shapes.
        where: Which leaves are scored.

    Returns:
        Scores |w - w0|, in the parameters' dtypes.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If the trees differ in structure or shapes, or `where` chooses
            nothing.

    Example:
        >>> score.movement({"w": jnp.array([[3.0, 4.0]])}, {"w": jnp.ones((1, 2))})
        {'w': Array([[2., 3.]], dtype=float32)}

    References:
        Zhou et al., "Deconstructing Lottery Tickets", NeurIPS 2019. arXiv:1905.01067,
        section 2 ("movement").
    """
    fn = "maskjax.score.movement"
    weights = checks.chosen_leaves(params, where, fn=fn)
    names = ("params", "initial")
    checks.same_shapes(params, initial, fn=fn, names=names, is_leaf=None)
    return trees.map_mask(lambda w, w0: jnp.abs(w - w0), weights, initial)


def random(params: Params, *, where: Predicate = kernels, key: Array) -> Scores:
    """A uniform draw in [0, 1) for each parameter.

    Args:
        params: Tree of arrays.
        where: Which leaves are scored.
        key: A typed key; every leaf gets its own.

    Returns:
        Scores in float32, whatever the parameters' dtypes, so that ties are rare.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not a typed key.
        ValueError: If `where` chooses nothing.

    Example:
        >>> scores = score.random({"w": jnp.ones((2, 3))}, key=jax.random.key(0))
        >>> scores["w"].shape
        (2, 3)
    """
    fn = "maskjax.score.random"
    checks.typed_key(key, fn=fn)
    picks = checks.chosen(params, where, fn=fn)
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [
            jax.random.uniform(jax.random.fold_in(key, i), w.shape) if pick else None
            for i, (w, pick) in enumerate(zip(leaves, picks, strict=True))
        ]
    )


def snip(
    loss: Callable[..., Array], params: Params, *data: Any, where: Predicate = kernels
) -> Scores:
    """How much the loss feels each parameter, |g * w|.

    Args:
        loss: `(params, *data) -> scalar`.
        params: Tree of arrays.
        *data: A batch, passed on to `loss`.
        where: Which leaves are scored.

    Returns:
        Scores |g * w|, g the gradient of the loss. The paper divides them by their sum,
        which ranks the same.

    Raises:
        TypeError: If a chosen leaf is not floating, or the loss is no floating scalar.
        ValueError: If `where` chooses nothing.

    Example:
        >>> loss = lambda params, x: jnp.sum(x @ params["w"])
        >>> params = {"w": jnp.array([[3.0], [-4.0]])}
        >>> score.snip(loss, params, jnp.array([[2.0, 1.0]]))["w"].ravel()
        Array([6., 4.], dtype=float32)

    References:
        Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
        ICLR 2019. arXiv:1810.02340.
    """
    f = objective(loss, params, where, fn="maskjax.score.snip")
    return f.tree([jnp.abs(x) for x in sensitivities(f, *data)])


def taylor(
    loss: Callable[..., Array], params: Params, *data: Any, where: Predicate = kernels
) -> Scores:
    """The squared change of the loss, to first order, when a parameter goes.

    Args:
        loss: As in `snip`.
        params: As in `snip`.
        *data: As in `snip`.
        where: As in `snip`.

    Returns:
        Scores (g * w)**2, g the gradient of the loss. They rank entries like `snip`,
        but not units, whose scores are sums of them.

    Raises:
        TypeError: As in `snip`.
        ValueError: As in `snip`.

    Example:
        >>> loss = lambda params, x: jnp.sum(x @ params["w"])
        >>> params = {"w": jnp.array([[3.0], [-4.0]])}
        >>> score.taylor(loss, params, jnp.array([[2.0, 1.0]]))["w"].ravel()
        Array([36., 16.], dtype=float32)

    References:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.
        arXiv:1906.10771.
    """
    f = objective(loss, params, where, fn="maskjax.score.taylor")
    return f.tree([jnp.square(x) for x in sensitivities(f, *data)])


def grasp(
    loss: Callable[..., Array], params: Params, *data: Any, where: Predicate = kernels
) -> Scores:
    """How far the norm of the gradient falls without each parameter, w * (H g).

    Args:
        loss: As in `snip`.
        params: As in `snip`.
        *data: As in `snip`.
        where: As in `snip`.

    Returns:
        Scores w * (H g), of both signs, where g and H are the gradient and the Hessian
        by the chosen leaves. The paper scores -w * (H g), and removes the highest; its
        authors' loss has logits divided by 200, without which outputs can saturate.

    Raises:
        TypeError: As in `snip`.
        ValueError: As in `snip`.

    Example:
        >>> loss = lambda params: jnp.sum(params["w"] ** 2) / 2
        >>> score.grasp(loss, {"w": jnp.array([[3.0, -4.0]])})
        {'w': Array([[ 9., 16.]], dtype=float32)}

    References:
        Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient
        Flow", ICLR 2020. arXiv:2002.07376.
    """
    f = objective(loss, params, where, fn="maskjax.score.grasp")
    gradient = jax.grad(lambda chosen: f.value(chosen, *data))
    _, product = jax.jvp(gradient, (f.chosen,), (gradient(f.chosen),))
    return f.tree([wide(w) * wide(x) for w, x in zip(f.chosen, product, strict=True)])


def fisher(
    loss: Callable[..., Array],
    params: Params,
    *data: Any,
    batch_size: int = 1,
    where: Predicate = kernels,
) -> Scores:
    """How much the loss would rise without each parameter, by its Fisher information.

    Args:
        loss: As in `snip`; it is given one example at a time, leading axis kept as 1.
        params: As in `snip`.
        *data: Arrays, or trees of them, whose leading axis is that of N examples.
        batch_size: How many examples to differentiate together, which takes memory for
            so many gradients. One is fastest for dense layers on CPU.
        where: As in `snip`.

    Returns:
        Scores w**2 / 2 * mean_n(g_n**2), g_n the gradient of the loss of example n.

    Raises:
        TypeError: As in `snip`.
        ValueError: As in `snip`; if `batch_size` is less than 1, or the arrays of
            `data` do not share a leading axis of 1 or more.

    Example:
        >>> loss = lambda params, x: jnp.sum(x @ params["w"])
        >>> x = jnp.array([[1.0, 0.0], [-1.0, 2.0]])
        >>> score.fisher(loss, {"w": jnp.array([[2.0], [1.0]])}, x)["w"].ravel()
        Array([2., 1.], dtype=float32)

    References:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning",
        2018. arXiv:1801.05787.
    """
    fn = "maskjax.score.fisher"
    f = objective(loss, params, where, fn=fn)
    means = mean_squares(f, data, batch_size, fn=fn)
    pairs = zip(f.chosen, means, strict=True)
    return f.tree([jnp.square(wide(w)) / 2 * mean for w, mean in pairs])


def synflow(
    apply: Callable[..., Any],
    params: Params,
    input_shape: Sequence[int],
    *,
    where: Predicate = kernels,
) -> Scores:
    """How much flows through each parameter of the network of |params|, without data.

    A single cut can take whole layers; many small ones don't. Hence
    `select.iterative_top_k(lambda p: score.synflow(apply, p, shape), params, ...)`.

    Args:
        apply: `(params, input) -> output`, any tree of arrays.
        params: Tree of arrays.
        input_shape: Of an input of ones, batch axis included.
        where: Which leaves are scored; all floating ones are made positive.

    Returns:
        Scores |w * dR/dw|, R the sum of the output. Without biases and with ReLUs, the
        scores of every layer sum to R, which grows with depth like the product of the
        layers' norms: very deep networks may need `jax_enable_x64`.

    Raises:
        TypeError: If a chosen leaf, or all that `apply` returns, is not floating.
        ValueError: As in `snip`.

    Example:
        >>> params = {"w": jnp.array([[3.0], [-4.0]])}
        >>> score.synflow(lambda p, x: x @ p["w"], params, (1, 2))["w"].ravel()
        Array([3., 4.], dtype=float32)

    References:
        Tanaka et al., "Pruning neural networks without any data by iteratively
        conserving synaptic flow", NeurIPS 2020. arXiv:2006.05467.
    """
    f = flow(apply, params, input_shape, where, fn="maskjax.score.synflow")
    return f.tree([jnp.abs(x) for x in sensitivities(f)])


def wanda(params: Params, input_norms: Params, *, where: Predicate = kernels) -> Scores:
    """The absolute value of each parameter times the norm of the inputs that it meets.

    Args:
        params: Tree of arrays.
        input_norms: From `input_norms`: a tree like `params`, each axis of a leaf the
            parameter's or 1. Only leaves that `where` does not choose may be None.
        where: Which leaves are scored.

    Returns:
        Scores |w| * norm. The paper ranks them within each output, as
        `jax.vmap(lambda s: select.top_k(s, density=0.5), -1, -1)(scores)` does.

    Raises:
        TypeError: If a chosen leaf or its norms are not floating.
        ValueError: If the norms do not fit `params`, or `where` chooses nothing.

    Example:
        >>> params = {"w": jnp.array([[3.0], [-4.0]])}
        >>> score.wanda(params, {"w": jnp.array([[2.0], [1.0]])})["w"].ravel()
        Array([6., 4.], dtype=float32)

    References:
        Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
        ICLR 2024. arXiv:2306.11695.
    """
    fn, names = "maskjax.score.wanda", ("params", "input_norms")
    picks = checks.chosen(params, where, fn=fn)
    triples = checks.mask_of(input_norms, params, fn=fn, names=names)
    met = [(p, x) for (p, _, x), pick in zip(triples, picks, strict=True) if pick]
    checks.raise_all(
        (f"{p}: {checks.kind_of(x)}" for p, x in met if not checks.is_floating(x)),
        f"`{fn}` needs every leaf of `input_norms` that `where` chooses to be floating",
        TypeError,
    )
    return jax.tree.structure(params).unflatten(
        [
            jnp.abs(wide(w)) * norms.astype(wide(w).dtype) if pick else None
            for (_, w, norms), pick in zip(triples, picks, strict=True)
        ]
    )


def input_norms(
    apply: Callable[..., Any], params: Params, *inputs: Any, where: Predicate = kernels
) -> Params:
    """The L2 norm of every input feature of each kernel, over batch and positions.

    The equations of `apply`, from any framework, are searched for dot products and
    convolutions of the kernels with what depends on `inputs`. To be compiled.

    Args:
        apply: `(params, *inputs) -> output`.
        params: Tree of arrays.
        *inputs: The data. Whatever else `apply` uses is taken for a constant.
        where: Which leaves are kernels.

    Returns:
        A tree like `params`, None where `where` does not choose, else norms in float32
        at least, of the kernel's rank, 1 along axes that are not contracted: (in, 1)
        for a dense kernel (in, out), (1, in) for (out, in), (1, 1, in, 1) for a
        convolution's. The axis of experts, or the outputs of a grouped convolution,
        which meet inputs of their own, has its length. Squares add up over all uses.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing, there are no inputs, or a chosen leaf
            meets none in a contraction, or meets one after a reshape, say, or inside of
            a loop other than `scan`.

    Example:
        >>> x = jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> net = lambda params, x: x @ params["w"]
        >>> score.input_norms(net, {"w": jnp.ones((2, 5))}, x)["w"].ravel()
        Array([5., 1.], dtype=float32)
    """
    # Here, since the types of jaxprs cost 4 % of importing JAX.
    from maskjax._core import walk

    fn = "maskjax.score.input_norms"
    picks = checks.chosen(params, where, fn=fn)
    squares = walk.squares(apply, params, inputs, picks, fn=fn)
    norms = [jnp.sqrt(squares[i]) if pick else None for i, pick in enumerate(picks)]
    return jax.tree.structure(params).unflatten(norms)
