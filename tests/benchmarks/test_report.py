"""The report in a browser that many people have: every picture, and no complaint."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from benchmarks import __main__ as demonstrate

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.optimized, pytest.mark.slow, pytest.mark.usefixtures("loose")]

# Counted by a script of the test's own: the report has none.
COUNT = """<script>addEventListener("load", () => {
  const all = [...document.images];
  const shown = all.filter((image) => image.complete && image.naturalWidth > 100);
  document.title = `${shown.length} of ${all.length}, ` +
    `${document.documentElement.scrollWidth - innerWidth} too wide`;
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_every_picture(width, tmp_path):
    out = pathlib.Path(os.environ.get("QUICK_OUT", tmp_path / "out"))
    if "QUICK_OUT" not in os.environ:
        how = ["--quick", "--only", "magnitude", "--out", str(out)]
        assert demonstrate.main(how) == 0
    text = (out / "index.html").read_text()
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"{COUNT}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--enable-logging=stderr", f"--window-size={width},900"]
    command += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'user'}"]
    seen = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert seen.returncode == 0, seen.stderr
    assert "CONSOLE" not in seen.stderr
    (title,) = re.findall(r"<title>(.*?)</title>", seen.stdout)
    count, wide = re.fullmatch(r"(\d+) of \1, (-?\d+) too wide", title).groups()
    assert int(count) == text.count("<img")
    assert int(count) > 0
    assert int(wide) <= 0
