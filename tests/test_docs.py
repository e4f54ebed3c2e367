"""The site: every snippet is run, every link leads somewhere, no claim drifts."""

import ast
import builtins
import doctest
import fnmatch
import pathlib
import re
import subprocess
import tomllib
import urllib.error
import urllib.request

import markdown_it
import nbformat
import pytest

from tests import test_public_api

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), DOCS / "api" / "index.md"]
OTHERS = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md"]
# Programs, whole processes, that a test of their own runs.
PROGRAMS = {"devices.md": "test_processes.py", "storage.md": "test_storage_page.py"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FLOORS = dict(re.fullmatch(r"(\w+)>=(.*)", d).groups() for d in PROJECT["dependencies"])


def tokens(text):
    """The tokens of Markdown, also those inside of paragraphs."""
    for token in markdown_it.MarkdownIt().enable("table").parse(text):
        yield token
        yield from token.children or ()


def text_of(path):
    """A page, or what a notebook says between its code."""
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def links(path):
    return [t.attrs["href"] for t in tokens(text_of(path)) if t.type == "link_open"]


def anchors(path):
    """The anchors of headings, as GitHub and the site make them."""
    found = [*markdown_it.MarkdownIt().parse(text_of(path))]
    heads = [found[i + 1] for i, t in enumerate(found) if t.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", h.content.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_snippet_is_run(path, request):
    """What looks like Python is a doctest, or the program that a test runs."""
    found = list(tokens(path.read_text()))
    indented = [t.content for t in found if t.type == "code_block"]
    fenced = {t.info for t in found if t.type == "fence"} - {"bash"}
    fenced = {info for info in fenced if not info.startswith("{")}
    assert all(block.startswith(">>>") for block in indented), indented
    assert fenced <= ({"python"} if path.name in PROGRAMS else set())
    if path.name in PROGRAMS:
        assert path.name in (ROOT / "tests" / PROGRAMS[path.name]).read_text()
    # Without four spaces Markdown takes `>>>` for a quotation of a quotation.
    written = re.findall(r"^\s*>>>", path.read_text(), re.MULTILINE)
    run = [line for block in indented for line in block.splitlines()]
    assert len(written) == sum(line.startswith(">>>") for line in run)
    if written:
        globs = request.config.getoption("doctestglob")
        assert any(fnmatch.fnmatch(path.name, glob) for glob in globs)
        ignored = [ROOT / p for p in request.config.getoption("ignore") or ()]
        assert not any(path.is_relative_to(p) for p in ignored)
        assert "docs" in request.config.getini("testpaths")


@pytest.mark.parametrize(
    "path",
    [*PAGES, *OTHERS, *sorted((ROOT / "notebooks").glob("*.ipynb"))],
    ids=lambda p: p.name,
)
def test_links_within_the_project_lead_somewhere(path):
    """As files. Sphinx checks them as pages, and all anchors."""
    for link in links(path):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if target.parent == DOCS / "notebooks":  # where the site has copies
            target = ROOT / "notebooks" / target.name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_questions_are_one_click_away():
    rows = re.findall(r"^\| .*\?.*\|$", (DOCS / "index.md").read_text(), re.MULTILINE)
    answers = [re.search(r"\]\((\w+\.md)#([\w-]+)\)", row).groups() for row in rows]
    assert len({*answers}) == len(rows) == 16
    sections = re.split(r"^## ", (DOCS / "howto.md").read_text(), flags=re.MULTILINE)
    short = {anchor for page, anchor in answers if page == "howto.md"}
    assert len(short) == len(sections) - 1 == 15
    assert short == anchors(DOCS / "howto.md") - {"short-answers"}
    assert all("    >>> " in section for section in sections[1:])


def missing(text):
    """Names that snippets use and do not define: they fail where they are pasted.

    Tests of snippets do not notice: those of docstrings have the modules at hand.
    """
    code = [e.source for e in doctest.DocTestParser().get_examples(text)]
    nodes = [node for source in code for node in ast.walk(ast.parse(source))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    used = {n.id for n in names if isinstance(n.ctx, ast.Load)}
    defined = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    kinds = ast.FunctionDef | ast.ClassDef | ast.ExceptHandler
    defined |= {node.name for node in nodes if isinstance(node, kinds)}
    imported = [(a.asname or a.name) for n in nodes for a in getattr(n, "names", ())]
    return used - defined - {name.split(".")[0] for name in imported} - {*dir(builtins)}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_snippets_import_and_define_what_they_use(path):
    """A page as a whole; short answers each by itself."""
    text = path.read_text()
    parts = re.split("^## ", text, flags=re.M) if path.name == "howto.md" else [text]
    assert not {part.split("\n")[0]: missing(part) for part in parts if missing(part)}


def test_every_public_module_is_in_the_reference():
    page = (DOCS / "api" / "index.md").read_text()
    listed = re.findall(r"^   (maskjax[\w.]*)$", page, re.MULTILINE)
    expected = {module.__name__ for module in test_public_api.MODULES} | {"maskjax"}
    assert sorted(listed) == sorted(expected)


def test_versions_are_those_of_the_project():
    page = (DOCS / "compatibility.md").read_text()
    row = re.compile(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
    rows = {name: (low, high) for name, low, high in row.findall(page)}
    assert {name.lower(): low for name, (low, _) in rows.items()} == {
        "python": PROJECT["requires-python"].removeprefix(">="),
        **FLOORS,
    }
    readme = (ROOT / "README.md").read_text()
    for name in ("JAX", "Flax", "optax"):
        assert f"{name} {FLOORS[name.lower()]}" in readme
    named = re.findall(r":: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert (named[0], named[-1]) == rows["Python"]
    assert f"Python {named[0]} to {named[-1]}" in readme
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    assert {*re.findall(r'python: "([\d.]+)"', workflow)} == {*named}
    assert {*re.findall(r"jax: (\w+) }", workflow)} == {"floor", "newest", "nightly"}
    cited = (ROOT / "CITATION.cff").read_text()
    version, day = PROJECT["version"], re.search(r"^date-released: (.*)$", cited, re.M)
    assert f"version: {version}\n" in cited
    changes = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert changes[:2] == ["Unreleased", f"{version} - {day[1]}"]


def test_floors_are_installed_as_they_are_written():
    out = subprocess.run([ROOT / ".ci/floors"], capture_output=True, check=True)
    written = [f"{name}=={FLOORS[name]}" for name in ("jax", "flax", "optax")]
    assert out.stdout.decode().split() == written


def test_a_tag_has_to_be_the_version():
    assert ".ci/tagged" in (ROOT / ".github/workflows/release.yml").read_text()
    for tag, code in ((f"v{PROJECT['version']}", 0), ("v99.0.0", 1)):
        call = [ROOT / ".ci/tagged", tag]
        done = subprocess.run(call, capture_output=True, check=False)
        assert done.returncode == code


@pytest.mark.slow
def test_links_out_of_the_project_lead_somewhere():
    every = {link for path in [*PAGES, *OTHERS] for link in links(path)}
    every = sorted(link for link in every if link.startswith("http"))
    dead, silent = [], 0
    for link in every:
        asked = urllib.request.Request(link, headers={"User-Agent": "links of maskjax"})
        try:
            urllib.request.urlopen(asked, timeout=20).close()
        except urllib.error.HTTPError as error:
            dead += [link] if error.code in (404, 410) else []
        except (urllib.error.URLError, TimeoutError):
            silent += 1
    if silent == len(every):
        pytest.skip("there is no network")
    assert not dead
