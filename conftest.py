"""What docstring examples find in their namespace."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import optax
import pytest

import maskjax
from maskjax import metrics, optim, recipes, report, storage, theory


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    modules = {name: getattr(maskjax, name) for name in maskjax.__all__}
    modules |= {"optim": optim, "report": report, "optax": optax}
    modules |= {"storage": storage, "metrics": metrics}
    for package in (recipes, theory):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            name = found.name.split(".")[-1]
            modules[name] = importlib.import_module(found.name)
    doctest_namespace.update(modules, jax=jax, jnp=jnp, maskjax=maskjax)
