"""The site of the documentation: it builds without a warning, and fits a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.pages import ROOT

PROBE = """<!DOCTYPE html>
<iframe style="width: 390px; height: 800px"></iframe>
<script>
  const frame = document.querySelector("iframe");
  frame.onload = () => {
    const page = frame.contentDocument;
    const scrolls = (it) => ["auto", "scroll"].includes(getComputedStyle(it).overflowX);
    const inside = (it) => it && (scrolls(it) || inside(it.parentElement));
    const wide = [...page.querySelectorAll("article *")].filter(
      (it) => it.getBoundingClientRect().right > 391 && !inside(it)
    );
    const names = wide.map((it) => it.tagName + " " + it.textContent.slice(0, 40));
    const width = page.documentElement.scrollWidth;
    const tables = page.querySelectorAll("table").length;
    document.title = JSON.stringify({ width, tables, names });
  };
  frame.src = "PAGE";
</script>
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    for module in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("site")
    recipe = (ROOT / "Makefile").read_text("utf-8")
    options = re.search(r"-m sphinx (.+) docs build/docs$", recipe, re.MULTILINE)
    assert options
    assert {"-W", "-n"} <= set(options[1].split())
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options[1].split(), "docs", folder],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.parametrize(
    "package",
    [
        *("resnet_spec", "resnet_onnx", "resnet_torch", "resnet_flax"),
        *("parity", "resnet_training"),
    ],
)
def test_every_public_name_has_its_place(site: Path, package: str):
    page = (site / "api" / f"{package}.html").read_text("utf-8")
    shown = set(re.findall(rf'id="{package}\.(\w+)"', page))
    assert shown >= set(import_module(package).__all__)


def test_no_page_asks_another_machine(site: Path):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="http', text)


def test_no_page_scrolls_sideways_on_a_phone(site: Path, tmp_path: Path):
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    probe, profile = tmp_path / "probe.html", tmp_path / "profile"
    for page in ("index.html", "api/parity.html", "benchmarks.html"):
        probe.write_text(PROBE.replace("PAGE", (site / page).as_uri()))
        switches = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync"),
            *("--disable-dev-shm-usage", "--allow-file-access-from-files"),
            *(f"--user-data-dir={profile}", "--window-size=800,900", "--dump-dom"),
        )
        try:
            dom = subprocess.run(
                [program, *switches, probe.as_uri()],
                capture_output=True,
                timeout=120,
                check=True,
                text=True,
            ).stdout
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            pytest.skip(f"{program} does not run here: {error}")
        found = re.search(r'"width":(\d+),"tables":(\d+),"names":(\[.*?\])\}', dom)
        assert found, dom[:500]
        assert int(found[1]) <= 390
        assert (int(found[2]) > 5) == (page == "benchmarks.html")
        assert found[3] == "[]"
