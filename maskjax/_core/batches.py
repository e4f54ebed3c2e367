"""Whether what a function makes of a sample depends on the others of its batch.

A batch as long as a large prime is traced. Axes of samples are those whose length is a
multiple of it. What is summed along one, or ranked, or contracted, depends on several
samples; if that meets samples again, they are mixed. A mean loss does not, as it ends
in a scalar; batch statistics do. Shifts and slices along samples go unnoticed.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

from maskjax._core.jaxprs import body_of, scan_counts

_PRIMES = (8191, 8209, 8219, 8221)

_REDUCTIONS = {
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor "
        "argmax argmin".split(),
        "axes",
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), "axis"),
    "reduce": "dimensions",
    "sort": "dimension",
}


def told_if_mixed(
    function: Callable[..., Any],
    params: Any,
    data: Sequence[Any],
    *,
    fn: str,
    gives: str,
    cure: str,
    stacklevel: int = 3,
) -> None:
    """Warn if a function that will get one sample at a time mixes those of a batch.

    It costs a trace and no computation; JAX keeps the trace of a function that is the
    same object. A function that can't be traced with a larger batch is left alone.

    Args:
        function: `(params, *data) -> any tree`.
        params: A tree of arrays.
        data: Trees of arrays whose leading axis counts samples.
        fn: The public function that warns.
        gives: What `fn` gives to which argument.
        cure: What to do.
        stacklevel: How far above is the line that the warning shows: that of the user.
    """

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    def many(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((prime, *x.shape[1:]), x.dtype)

    sizes = {n for x in jax.tree.leaves(params) for n in x.shape if n}
    sizes |= {n for x in jax.tree.leaves(tuple(data)) for n in x.shape[1:] if n}
    apart = (p for p in _PRIMES if all(n % p for n in sizes))
    prime = next(apart, _PRIMES[0])
    try:
        shapes = jax.tree.map(shape, params), *jax.tree.map(many, tuple(data))
        traced = jax.make_jaxpr(function)(*shapes)
        mixed = _Walk(prime).run(traced, [False] * len(traced.jaxpr.invars))[1]
    except Exception:  # what is made for one sample may refuse several in any way
        return
    if mixed:
        warnings.warn(
            f"`{fn}` gives {gives}, but it mixes the samples of a batch, as BatchNorm "
            f"does in training mode: a batch of one is normalized to 0. {cure}",
            UserWarning,
            stacklevel=stacklevel,
        )


class _Walk:
    """Through a jaxpr: which values depend on several samples."""

    def __init__(self, prime: int):
        self.prime = prime

    def run(self, jaxpr: Any, several: Sequence[bool]) -> tuple[list[bool], bool]:
        """Which outputs do, for inputs that do; and whether samples are mixed."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        known = dict(zip(jaxpr.invars, several, strict=True))
        mixed = False

        def read(atom: Any) -> bool:
            literal = hasattr(atom, "val")  # `jax.extend.core` is slow to import
            return not literal and known.get(atom, False)

        for equation in jaxpr.eqns:
            outs, inner = self.step(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, outs, strict=True))
            met = any(
                out and self.samples(var.aval.shape)
                for var, out in zip(equation.outvars, outs, strict=True)
                if hasattr(var.aval, "shape")
            )
            mixed = mixed or inner or met
        return [read(atom) for atom in jaxpr.outvars], mixed

    def step(self, equation: Any, ins: list[bool]) -> tuple[list[bool], bool]:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self.scan(params, ins)
        if name == "while":
            first, second = params["cond_nconsts"], params["body_nconsts"]
            consts, carry = ins[first : first + second], ins[first + second :]
            return self.loop(params["body_jaxpr"], consts, carry, [])
        if name == "cond":
            runs = [self.run(body, ins[1:]) for body in params["branches"]]
            outs = [any(each) for each in zip(*(out for out, _ in runs), strict=True)]
            return [out or ins[0] for out in outs], any(mixed for _, mixed in runs)
        body = body_of(equation)
        if body is not None and len(getattr(body, "jaxpr", body).invars) == len(ins):
            return self.run(body, ins)
        several = any(ins) or self.reduces(equation)
        return [several] * len(equation.outvars), False

    def scan(self, params: Any, ins: list[bool]) -> tuple[list[bool], bool]:
        first, n = scan_counts(params)
        consts, carry, rows = ins[:first], ins[first : first + n], ins[first + n :]
        if params["length"] % self.prime == 0:  # a step for each sample
            carry = [True] * n
        return self.loop(params["jaxpr"], consts, carry, rows)

    def loop(
        self, body: Any, consts: list[bool], carry: list[bool], rows: list[bool]
    ) -> tuple[list[bool], bool]:
        """A body whose first outputs are its next carry, until nothing changes."""
        while True:
            outs, mixed = self.run(body, [*consts, *carry, *rows])
            joined = [a or b for a, b in zip(carry, outs, strict=False)]
            if joined == carry:
                return [*carry, *outs[len(carry) :]], mixed
            carry = joined

    def samples(self, shape: Sequence[int]) -> bool:
        return any(size and size % self.prime == 0 for size in shape)

    def reduces(self, equation: Any) -> bool:
        """Whether an equation makes one number of several samples."""
        name, params = equation.primitive.name, equation.params
        shape: Any = (
            getattr(equation.invars[0].aval, "shape", ()) if equation.invars else ()
        )
        if name in _REDUCTIONS:
            axes = params[_REDUCTIONS[name]]
            axes = (axes,) if isinstance(axes, int) else axes
            return self.samples([shape[axis] for axis in axes])
        if name == "dot_general":
            (axes, _), _ = params["dimension_numbers"]
            return self.samples([shape[axis] for axis in axes])
        if name.startswith("scatter"):  # a sum of segments
            updates = equation.invars[2].aval.shape
            return self.samples(updates) and not self.samples(shape)
        return False
