"""What docstring examples find in their namespace."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import optax
import pytest

import maskjax
from maskjax import layers, metrics, optim, recipes, report, storage


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    modules = {name: getattr(maskjax, name) for name in maskjax.__all__}
    modules |= {"optim": optim, "report": report, "optax": optax}
    modules |= {"storage": storage, "metrics": metrics, "layers": layers}
    for recipe in pkgutil.iter_modules(recipes.__path__, "maskjax.recipes."):
        modules[recipe.name.split(".")[-1]] = importlib.import_module(recipe.name)
    doctest_namespace.update(modules, jax=jax, jnp=jnp, maskjax=maskjax)
