"""Every public name is exported, documented and exemplified."""

import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

import maskjax

SKIPPED = {"maskjax.recipes", "maskjax.theory"}  # namespaces, not modules of names


def public_modules():
    found = pkgutil.walk_packages(maskjax.__path__, "maskjax.")
    names = [m.name for m in found if "._" not in m.name]
    return [importlib.import_module(name) for name in names if name not in SKIPPED]


MODULES = public_modules()
FUNCTIONS = [
    pytest.param(getattr(module, name), id=f"{module.__name__}.{name}")
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
]
CLASSES = [
    pytest.param(getattr(module, name), id=f"{module.__name__}.{name}")
    for module in MODULES
    for name in module.__all__
    if inspect.isclass(getattr(module, name))
]


def test_there_are_names_to_check():
    assert len(MODULES) >= 13
    assert len(FUNCTIONS) >= 40
    assert CLASSES


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_modules_are_documented_exported_and_exemplified(module):
    assert module.__doc__
    assert ">>>" in module.__doc__
    assert sorted(module.__all__) == module.__all__
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_public_definition_is_exported(module):
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "") == module.__name__
    }
    assert own - internal(module) <= set(module.__all__)


def internal(module):
    """Names that other modules of the package share, and users should not."""
    return {
        "maskjax.packing": {
            "dot_leaf",
            "mix_leaf",
            "pack_leaf",
            "population",
            "tally_leaf",
            "unpack_leaf",
            "valid_bits",
        },
        "maskjax.structure": {"any_alive", "sums_of_units"},
    }.get(module.__name__, set())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_have_every_section(function):
    doc = inspect.getdoc(function) or ""
    parameters = inspect.signature(function).parameters
    assert doc.splitlines()[0].endswith("."), "a first line that stands alone"
    assert "Returns:\n" in doc
    assert "Example:\n" in doc
    assert ">>>" in doc
    if parameters:
        assert "Args:\n" in doc
    for name in parameters:
        assert re.search(rf"^    \*?{name}: ", doc, re.MULTILINE), (
            f"{name} undocumented"
        )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_keys_have_no_default_and_are_keyword_only(function):
    parameters = inspect.signature(function).parameters
    if "key" in parameters:
        assert parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters["key"].default is inspect.Parameter.empty
    assert not {"sparsity", "prune_rate", "keep_rate", "importance"} & set(parameters)


@pytest.mark.parametrize("cls", CLASSES)
def test_classes_are_documented(cls):
    assert (inspect.getdoc(cls) or "").splitlines()[0].endswith(".")


def test_the_package_exports_its_modules_and_apply():
    assert sorted(maskjax.__all__) == maskjax.__all__
    assert maskjax.apply is maskjax.masking.apply
    core = {m.name for m in pkgutil.iter_modules(maskjax.__path__)}
    # Imported by those who use them.
    outer = {"layers", "metrics", "optim", "recipes", "report", "storage", "theory"}
    public = {name for name in core if not name.startswith("_")}
    assert public - outer == set(maskjax.__all__) - {"apply"}


def test_the_package_is_typed():
    assert (pathlib.Path(maskjax.__file__).parent / "py.typed").exists()
