"""What docstring examples find in their namespace."""

import jax
import jax.numpy as jnp
import optax
import pytest

import maskjax
from maskjax import optim, report
from maskjax.recipes import deconstructing, edge_popup, lottery_ticket


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    modules = {name: getattr(maskjax, name) for name in maskjax.__all__}
    modules |= {"optim": optim, "report": report, "optax": optax}
    modules |= {"deconstructing": deconstructing, "edge_popup": edge_popup}
    modules |= {"lottery_ticket": lottery_ticket}
    doctest_namespace.update(modules, jax=jax, jnp=jnp, maskjax=maskjax)
