"""The site: `sphinx-build -W --keep-going -b html docs docs/_build`."""

import pathlib
import re
import shutil
import sys
import tomllib

from docutils import nodes

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the API of this checkout

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
project, release = _PROJECT["name"], _PROJECT["version"]
author = "The maskjax authors"
copyright = f"2026, {author}"
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_templates", "jupyter_execute"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"{project} {release}"

# Sphinx wants all sources in one folder, so notebooks are copied there.
_COPIES = ROOT / "docs" / "notebooks"
shutil.rmtree(_COPIES, ignore_errors=True)
shutil.copytree(ROOT / "notebooks", _COPIES, ignore=shutil.ignore_patterns(".*"))

# What is copied from a snippet is what to type: no prompts, no outputs.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Notebooks are shown with the outputs that are committed: tests run them, not the site.
nb_execution_mode = "off"
myst_heading_anchors = 4

# A single backtick is code, in docstrings as in Markdown.
default_role = "code"
smartquotes = False
# Types are in the source, and shapes in the docstrings: signatures stay short.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 76
add_module_names = False
autosummary_generate = True
autosummary_ignore_module_all = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Links are written for those who read the files; the site has the files elsewhere.
_LINKS = {
    "../notebooks/": "notebooks/",
    "../benchmarks/README.md": "benchmarks.md",
    "../CHANGELOG.md": "changelog.md",
    "../CONTRIBUTING.md": "contributing.md",
}


def _links(app, docname, source):
    links = {"../docs/": "../"} if docname.startswith("notebooks/") else _LINKS
    for there, here in links.items():
        source[0] = source[0].replace(f"]({there}", f"]({here}")


# What our docstrings mean literally and reStructuredText does not: `|x|`, `*x`, `x_`.
_MARKUP = re.compile(r"\||\*(?=\S)|(?<=\w)_(?!\w)")


def _docstring(app, what, name, obj, options, lines):
    """Plain docstrings as reStructuredText: nothing is escaped, and lists just end."""
    example, before, out = False, "", []
    for line in lines:
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            line = _plain(line)
            if before.strip() and _indent(line) < _indent(before):
                out.append("")
            if before.strip() == "Returns:":  # what comes before a colon is no type
                line = line[: _indent(line)] + ": " + line.lstrip()
        out.append(line)
        before = line
    lines[:] = out


def _plain(line):
    """A line of prose, in which only code between backticks is markup."""
    parts = re.split(r"(`[^`]*`)", line)
    for i in range(0, len(parts), 2):
        parts[i] = _MARKUP.sub(r"\\\g<0>", parts[i])
        if i and re.match(r"\w", parts[i]):  # as in the plural of `Array`s
            parts[i] = "\\ " + parts[i]
    return "".join(parts)


def _indent(line):
    return len(line) - len(line.lstrip())


def _highlighted(app, doctree):
    """Snippets of pages, which are indented, as Python sessions."""
    for block in doctree.findall(nodes.literal_block):
        if block.astext().startswith(">>> "):
            block["language"] = "pycon"


def _skip(app, what, name, obj, skip, options):
    """Fields of named tuples are said in the docstring of their class."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    """What Sphinx calls first."""
    app.connect("source-read", _links)
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-skip-member", _skip)
    app.connect("doctree-read", _highlighted)
    return {"parallel_read_safe": True}
