"""Every public name is exported, documented and exemplified."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import maskjax

SKIPPED = {"maskjax.recipes", "maskjax.theory"}  # whose names are modules


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
def test_help_shows_types_by_their_names(function):
    """As they are written, if the file begins with `from __future__ import ...`."""
    shown = str(inspect.signature(function))
    assert not re.search(r"jaxlib|ForwardRef|Union|collections\.abc", shown)
    assert len(shown) <= 440


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
    assert maskjax.apply is maskjax.masking.apply
    assert maskjax.__all__ == sorted([*modules_in(maskjax), "apply"])


def modules_in(package):
    found = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return [name for name in found if not name.startswith("_")]


@pytest.mark.parametrize("package", [maskjax.recipes, maskjax.theory])
def test_namespaces_export_their_modules(package):
    assert package.__all__ == sorted(modules_in(package))


def test_modules_need_no_import_of_their_own():
    """In a fresh interpreter, where nobody has imported them yet."""
    code = """if True:
        import sys, maskjax
        loaded = {name.removeprefix("maskjax.") for name in sys.modules}
        lazy = {*maskjax.__all__} - loaded - {"apply"}
        for package in (maskjax, maskjax.recipes, maskjax.theory):
            assert set(package.__all__) == {n for n in dir(package) if n[:2] != "__"}
            for name in package.__all__:
                found = getattr(package, name)
                if name != "apply":
                    assert found is sys.modules[f"{package.__name__}.{name}"]
                    assert vars(package)[name] is found  # as fast as any from now on
        for package in (maskjax, maskjax.recipes, maskjax.theory):
            try:
                package.optin
            except AttributeError as error:
                assert f"module '{package.__name__}' has no attribute" in str(error)
                assert (error.name, error.obj) == ("optin", package)
            else:
                raise AssertionError(package)
        print(*lazy)
    """
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"layers", "metrics", "optim", "report", "storage"} <= {*out.stdout.split()}


def test_type_checkers_see_every_module():
    """They read imports under `TYPE_CHECKING`, and no `__getattr__`."""
    for package in (maskjax, maskjax.recipes, maskjax.theory):
        source = pathlib.Path(package.__file__).read_text()
        seen = [
            alias.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and node.module == package.__name__
            for alias in node.names
        ]
        assert sorted(seen) == sorted(modules_in(package))
        assert "\nif not TYPE_CHECKING:\n    __getattr__, __dir__ = " in source
        assert source.count("__getattr__") == 1


def test_the_package_is_typed():
    assert (pathlib.Path(maskjax.__file__).parent / "py.typed").exists()
