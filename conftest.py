"""What docstring examples find in their namespace."""

import jax
import jax.numpy as jnp
import optax
import pytest

import maskjax
from maskjax import report
from maskjax.recipes import edge_popup


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    modules = {name: getattr(maskjax, name) for name in maskjax.__all__}
    modules |= {"report": report, "edge_popup": edge_popup, "optax": optax}
    doctest_namespace.update(modules, jax=jax, jnp=jnp, maskjax=maskjax)
