"""The report's page in a real browser: the verdict's colour, and the curves."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity.reports.page import write_html
from tests.support.reports import TITLE, report_of

PASS, FAIL = (26, 127, 55), (201, 37, 45)


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Opens a page without a window, and without the network."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")

    def browse(path: Path, *options: str, width: int = 1200) -> str:
        profile = tmp_path_factory.mktemp("profile")
        switches = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", "--force-color-profile=srgb"),
            *("--force-device-scale-factor=2", f"--user-data-dir={profile}"),
            f"--window-size={width},2200",
        )
        try:
            done = subprocess.run(
                [program, *switches, *options, path.as_uri()],
                capture_output=True,
                timeout=120,
                check=True,
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            pytest.skip(f"{program} does not run here: {error}")
        finally:
            shutil.rmtree(profile, ignore_errors=True)
        return done.stdout.decode("utf-8", "replace")

    return browse


@pytest.fixture(scope="module", params=["", "layer2.0.bn1"], ids=["passed", "failed"])
def shown(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[Path, bool]:
    """A page, and whether it is one of a passed check."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_html(report_of(bad=request.param), path, title=TITLE)
    return path, not request.param


def test_a_browser_finds_the_verdict_and_the_plots(
    browse: Callable[..., str], shown: tuple[Path, bool]
):
    path, ok = shown
    dom = browse(path, "--dump-dom")
    assert f"<h1>{'PASS' if ok else 'FAIL'}</h1>" in dom
    assert dom.index("<h1>") < dom.index("<table") < dom.index("<svg")
    assert dom.count("</svg>") == 4
    assert dom.count('<details open="">') == 0 if ok else dom.count("<details open") > 3


DARK = "--blink-settings=preferredColorScheme=0"

CURVES = {
    "light": ((243, 163, 92), (20, 99, 196), (122, 79, 201)),
    "dark": ((201, 119, 43), (121, 184, 255), (189, 155, 245)),
}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 500)])
def test_a_browser_shows_the_verdicts_colour_and_draws_the_plot(
    browse: Callable[..., str],
    shown: tuple[Path, bool],
    tmp_path: Path,
    scheme: str,
    width: int,
):
    path, ok = shown
    file = tmp_path / "page.png"
    options = (DARK,) if scheme == "dark" else ()
    browse(path, f"--screenshot={file}", *options, width=width)
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert pixels.shape[1] == 2 * width
    paper = (18, 22, 27) if scheme == "dark" else (255, 255, 255)
    assert tuple(pixels[2, 2]) == paper
    top = pixels[:600]
    assert _near(top, PASS if ok else FAIL).sum() > 0.1 * top[..., 0].size
    assert _near(top, FAIL if ok else PASS).sum() == 0
    for curve in CURVES[scheme]:
        found = _near(pixels, curve)
        # Wider than in the legend; elsewhere another curve may cover it.
        assert found.any(0).sum() > 2 * width / 5


def _near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Which pixels have a colour, or nearly: edges are smoothed."""
    return np.abs(pixels - colour).max(2) < 40
