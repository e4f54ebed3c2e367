"""The report of a run: a short table, and one page that needs no other file."""

import base64
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

import jinja2
from rich import markup, table

from benchmarks._registry import MET, NOT_ASKED, NOT_MET, PARTLY

HERE = pathlib.Path(__file__).parent
SYSTEMS = tomllib.loads(HERE.joinpath("systems.toml").read_text())
VERDICTS = (MET, PARTLY, NOT_MET, NOT_ASKED)
MISSING = {
    "failed": "It stopped with an error, which the terminal shows",
    "not run": "The run ended before this one",
}
STYLES = {MET: "green", PARTLY: "yellow", NOT_MET: "red"}


def short(demo: Mapping[str, Any]) -> str:
    """What was measured, in a few words."""
    told = [row["short"] for row in demo["rows"] if row["short"]]
    return "; ".join(told) or demo["rows"][0]["measured"]


def summary(record: Mapping[str, Any]) -> table.Table:
    """A line for each system: what it promises, what was measured, if that is so."""
    drawn = table.Table(title=record["data"]["name"], show_lines=True)
    drawn.add_column("system")
    drawn.add_column("promise", ratio=2)
    drawn.add_column("measured", ratio=3)
    drawn.add_column("verdict")
    drawn.add_column("s", justify="right")
    for name, demo in record["demos"].items():
        verdict, style = demo["verdict"], STYLES.get(demo["verdict"], "default")
        told = map(markup.escape, (name, SYSTEMS[name]["promise"], short(demo)))
        seconds = f"{demo['seconds']:.0f}"
        drawn.add_row(*told, f"[{style}]{verdict}[/]", seconds)
    for name, why in record["missing"].items():
        promise = markup.escape(SYSTEMS[name]["promise"])
        drawn.add_row(name, promise, MISSING[why], f"[red]{why}[/]", "")
    return drawn


def write(record: Mapping[str, Any], out: pathlib.Path) -> pathlib.Path:
    """Write `index.html`, with all pictures inside, and no scripts."""
    loader = jinja2.FileSystemLoader(HERE)
    # What is shown comes from the data and from errors: nothing of it is markup.
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    pages.filters["short"] = short
    pages.undefined = jinja2.StrictUndefined
    demos = record["demos"].values()
    counts = {v: sum(demo["verdict"] == v for demo in demos) for v in VERDICTS}
    counts |= {
        why: sum(x == why for x in record["missing"].values()) for why in MISSING
    }
    page = pages.get_template("report.html").render(
        record=record,
        systems=SYSTEMS,
        missing=MISSING,
        counts={name: count for name, count in counts.items() if count},
        picture=lambda name: base64.b64encode((out / name).read_bytes()).decode(),
    )
    path = out / "index.html"
    path.write_text(page, encoding="utf-8")
    return path
