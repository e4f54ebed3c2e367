"""What docstring examples find in their namespace, and where compiled code is kept."""

import gc
import importlib
import os
import pkgutil

import jax
import jax.numpy as jnp
import optax
import pytest
from jax._src import compiler

import maskjax
from maskjax import layers, metrics, optim, recipes, report, storage, theory


def pytest_configure(config):
    """Keeps what is compiled, for compiling is most of what a test takes."""
    if config.pluginmanager.hasplugin("cacheprovider"):
        kept = {
            "jax_compilation_cache_dir": str(config.cache.mkdir("jax")),
            "jax_persistent_cache_min_compile_time_secs": 0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        for name, value in kept.items():
            # In the environment too, for notebooks, which are processes of their own.
            if os.environ.setdefault(name.upper(), str(value)) == str(value):
                jax.config.update(name, value)


def pytest_collection_modifyitems(items):
    """Optimized modules come first, for each change forgets all programs. See below.

    Files stay in the order of their names: examples, which are short, are last, so that
    both workers end at about the same time.
    """
    items.sort(key=lambda item: item.get_closest_marker("optimized") is None)


def pytest_collection_finish():
    """What is there before the first test stays, so it need not be looked through.

    Tracing allocates much, and a tenth of the time went into collecting garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


_MODULES = 16  # whose programs are kept: JAX keeps no new one while 8,192 are alive
_kept = {"fast": None, "modules": 0}


@pytest.fixture(autouse=True, scope="session")
def _simple_loops():
    """What is compiled fast on CPU is emitted by XLA's older, faster emitters.

    And as one module: LLVM can compile several side by side, but takes longer for all.
    JAX has options for this for each function, but none for all of them. Later versions
    of XLA have no older emitters.
    """
    options = compiler.get_compile_options

    def fast_options(*args, env_options_overrides=None, **given):
        chosen = dict(env_options_overrides or {})
        if jax.config.read("jax_disable_most_optimizations"):
            chosen.setdefault("xla_cpu_use_fusion_emitters", False)
            chosen.setdefault("xla_cpu_parallel_codegen_split_count", 1)
        return options(*args, env_options_overrides=chosen, **given)

    if jax.default_backend() == "cpu" and jax.__version_info__ < (0, 11):
        compiler.get_compile_options = fast_options
    yield
    compiler.get_compile_options = options


@pytest.fixture(autouse=True, scope="module")
def _compiling(request):
    """Compiles fast, and keeps programs for the modules that follow.

    What runs once is not worth optimizing, except where a module is marked `optimized`:
    there laws are checked on the code that users run, so nothing else is carried over.
    """
    fast = jax.default_backend() == "cpu"
    fast &= request.node.get_closest_marker("optimized") is None
    _kept["modules"] += 1
    if fast != _kept["fast"] or _kept["modules"] > _MODULES:
        jax.config.update("jax_disable_most_optimizations", fast)
        jax.clear_caches()
        _kept.update(fast=fast, modules=1)


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    modules = {name: getattr(maskjax, name) for name in maskjax.__all__}
    modules |= {"optim": optim, "report": report, "optax": optax}
    modules |= {"storage": storage, "metrics": metrics, "layers": layers}
    for package in (recipes, theory):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            name = found.name.split(".")[-1]
            modules[name] = importlib.import_module(found.name)
    doctest_namespace.update(modules, jax=jax, jnp=jnp, maskjax=maskjax)
