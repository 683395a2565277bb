"""The report as a page: what it says, that it stands alone, and how a browser shows it.

Reports are made by hand, so that each has what it must show; only the command's are of
real networks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from parity import GATES, OutputError, Report
from parity.gates import GateResult, Row
from parity.page import to_html, write_html
from resnet_cli.main import main
from tests.networks import TINY

TITLE = "tiny: random weights, seed 3"
PASS, FAIL = (26, 127, 55), (201, 37, 45)
TAPS = ("conv1", "layer1.0.bn1", "layer1.0", "layer2.0.bn1", "layer2.0", "fc", "output")


def _figures(error: float, value: float = 1.5) -> dict[str, Any]:
    place = {"worst": [1, 2, 3, 4], "value": value, "expected": 1.25}
    return {"l2": error, "max": error} | place


def _row(tap: str, error: float, limit: float, kind: str, note: str = "") -> Row:
    figures: dict[str, Any] = _figures(error)
    if limit != 1e-12:
        figures = {"torch": _figures(2e-7), "flax": figures}
        figures |= {"ratio": error / 2e-7, "use": error / limit}
    return Row(tap, error <= limit, kind, error, limit, note, figures)


def _gate(gate: str, taps: tuple[str, ...], bad: str, error: float) -> GateResult:
    what = f"judges {gate} & more"
    if gate in ("G0", "G5"):
        return GateResult(gate, what, tuple(Row(tap, True) for tap in taps))
    good, limit = (4e-16, 1e-12) if "G1" in gate else (3e-7, 1e-6)
    kinds = ("output", "gradient") if "training" in gate else ("output",)
    note = "kink, 2 units in Flax" if gate == "G4" else ""
    from_bad = taps[taps.index(bad) :] if bad else ()
    if "isolated" in gate:
        from_bad = from_bad[:1]
    rows = tuple(
        _row(tap, error if tap in from_bad else good, limit, kind, note)
        for kind in kinds
        for tap in taps
    )
    return GateResult(gate, what, rows)


def _report(
    *,
    bad: str = "",
    error: float = 1e-3,
    taps: tuple[str, ...] = TAPS,
    gates: Sequence[str] = GATES,
) -> Report:
    setting = {
        "config": TINY.to_json(),
        "dtype": "float32",
        "arithmetic": "float32",
        "seed": 7,
        "inputs": {"shape": [2, 3, 64, 48], "sha256": "0123abcd"},
        "versions": {"torch": "2.99", "absent": None},
    }
    results = tuple(_gate(gate, taps, bad, error) for gate in gates)
    return Report(results, dict.fromkeys(taps, (2, 8, 16, 12)), setting)


def _page(report: Report, title: str = TITLE) -> str:
    return to_html(report, title=title)


class _Outline(HTMLParser):
    """What a page is made of; fails where elements are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style" and data.strip():
            self.text.append(data.strip())


def test_the_verdict_comes_first():
    assert _Outline(_page(_report())).text[1:3] == [
        "PASS",
        "both compute the same network",
    ]
    text = _Outline(_page(_report(bad="layer2.0.bn1"))).text
    assert text[0] == f"FAIL: {TITLE}"
    assert text[1] == "FAIL"
    assert text[2].endswith("first divergence at layer2.0.bn1")
    assert text[3] == "wrong by itself: layer2.0.bn1"
    assert text[4:6] == ["checked", TITLE]


def test_what_was_checked_follows_in_short():
    text = " ".join(_Outline(_page(_report())).text)
    assert "basic blocks 1-2, widths 8-16, 7 classes" in text
    assert "2 × 3 × 64 × 48" in text
    assert "seed of labels 7" in text
    assert "versions torch 2.99" in text
    assert "inputs sha256 0123abcd" in text
    assert "absent" not in text


def test_every_gate_is_there_with_its_verdict():
    report = _report(bad="fc")
    text = _Outline(_page(report)).text
    gates = text[text.index("Gates") : text.index("Error against depth")]
    for gate in report.gates:
        start = gates.index(gate.gate)
        found = gates[start : start + 4]
        assert found[1] == gate.what
        assert found[3] == ("pass" if gate.ok else "FAIL")


def test_skipped_gates_say_why():
    skipped = GateResult("G5", "top-1 class", (), "there are no classes")
    report = Report((*_report(gates=("G1",)).gates, skipped), {}, {})
    text = _Outline(_page(report)).text
    assert text[text.index("there are no classes") + 1] == "skipped"


def test_a_page_asks_for_no_other_file():
    page = _page(_report(bad="fc"))
    spaces = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
    assert set(re.findall(r"\w+://[^\s\"'<>]*", page)) <= set(spaces)
    outline = _Outline(page)
    assert not {"script", "img", "iframe", "object", "base"} & set(outline.tags)
    for name, value in outline.attributes:
        if name in ("href", "xlink:href", "src"):
            assert value is not None
            assert value.startswith("#") or value == "data:,"
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "default-src 'none'" in page


def test_nothing_in_a_name_is_taken_for_html():
    evil = '<script>alert("1")</script>&amp;$x_1$é漢'
    report = _report(bad=evil, taps=("conv1", evil, "output"))
    page = _page(report, f"{evil}.png")
    outline = _Outline(page)
    assert "script" not in outline.tags
    assert outline.text[0] == f"FAIL: {evil}.png"
    assert sum(evil in text for text in outline.text) > 10


def test_a_page_is_the_same_for_the_same_report():
    page = _page(_report(bad="fc"))
    assert page == _page(_report(bad="fc"))
    code = (
        "from tests.test_html import _page, _report; "
        "import sys; sys.stdout.buffer.write(_page(_report(bad='fc')).encode())"
    )
    other = subprocess.check_output([sys.executable, "-c", code])
    assert other.decode() == page
    assert not re.search(r"20\d\d-\d\d-\d\d|Matplotlib", page)


def test_the_settings_of_a_users_matplotlib_change_nothing():
    import matplotlib

    page = _page(_report())
    looks: Any = {"font.size": 20, "svg.fonttype": "path", "axes.linewidth": 5}
    with matplotlib.rc_context(looks):
        assert _page(_report()) == page
        assert matplotlib.rcParams["font.size"] == 20


def test_ids_are_not_given_twice_and_lead_somewhere():
    page = _page(_report(bad="fc"))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def _marked(page: str, what: str) -> int:
    """Marks in the wide drawing of the outputs."""
    groups = re.findall(rf'<g id="output-wide-{what}">(.*?)</g>\s*</g>', page, re.S)
    return sum(group.count("<use") for group in groups)


def test_a_failed_reports_plot_marks_what_failed_and_names_the_first():
    page = _page(_report(bad="layer2.0"))
    assert _marked(page, "failed") == 3
    assert _marked(page, "alone") == 1
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert ">layer2.0</text>" in svg
    good = _page(_report())
    assert _marked(good, "failed") == _marked(good, "alone") == 0
    assert ">wrong by itself<" not in good


@pytest.mark.parametrize("error", [inf, nan, 0.0])
def test_errors_that_have_no_place_on_the_axis_are_drawn_all_the_same(error: float):
    page = _page(_report(bad="layer2.0", error=error))
    assert _marked(page, "failed") == (0 if error == 0 else 3)
    drawn = re.findall(r'<(?:path|use)[^>]* (?:d|x|y)="([^"]*)"', page)
    assert not any("nan" in d or "inf" in d for d in drawn)
    assert page.count("<svg") == 4


def test_a_network_that_raised_is_shown_though_nothing_was_measured():
    row = Row("layer2.1", False, note="raised TypeError: <shapes>")
    gates = tuple(GateResult(gate, "both networks run", (row,)) for gate in GATES)
    for shapes in ({}, {"conv1": (1, 2)}):
        page = _page(Report(gates, shapes, {}))
        assert "first divergence at layer2.1 raised TypeError: &lt;shapes&gt;" in page
        assert "<svg" not in page


def test_one_twin_that_raised_is_marked_among_what_the_other_gave():
    row = Row("layer2.0", False, note="raised TypeError: no")
    gates = (*_report(gates=("G1",)).gates, GateResult("G2", "both run", (row,)))
    page = _page(Report(gates, dict.fromkeys(TAPS, (1,)), {}))
    assert _marked(page, "failed") == 1


@pytest.mark.parametrize("gates", [(), ("G0",), ("G1",), ("G2 training",), ("G5",)])
def test_checks_of_some_gates_give_a_page(gates: tuple[str, ...]):
    page = _page(_report(gates=gates))
    _Outline(page)
    assert page.count("<svg") == (2 if "G1" in gates or "G2 training" in gates else 0)
    assert f"<h1>{'PASS' if gates else 'FAIL'}</h1>" in page


def test_the_gradients_have_a_plot_of_their_own():
    headings = re.findall("<h2>(.*?)</h2>", _page(_report()))
    plots = ["Error against depth", "Error against depth, backwards"]
    assert headings == ["Gates", *plots, "Worst elements", "Kinks", "Everything"]


def test_the_worst_elements_are_those_closest_to_their_limits_eight_at_most():
    taps = tuple(f"layer1.{i}" for i in range(30))
    rows = tuple(_row(t, (i + 1) * 1e-8, 1e-6, "output") for i, t in enumerate(taps))
    report = Report((GateResult("G2", "all", rows),), dict.fromkeys(taps, (1,)), {})
    page = _page(report)
    worst = page[page.index("Worst elements") : page.index("Everything")]
    assert re.findall(r"layer1\.(\d+)", worst) == [str(i) for i in range(29, 21, -1)]
    cells = re.findall("<td>(.*?)</td>", worst)[1:9]
    assert cells[:5] == ["output", "1,2,3,4", "1.5", "1.25", "2.5e-01"]
    assert cells[5:] == ["2.0e-07", "3.0e-07", "1.0e-06"]


def test_hundreds_of_taps_keep_the_plot_legible_and_the_page_small():
    depth = {"layer1": 3, "layer2": 8, "layer3": 36, "layer4": 3}
    blocks = [f"{stage}.{i}" for stage, n in depth.items() for i in range(n)]
    taps = tuple(f"{block}.part{i}" for block in blocks for i in range(12))
    taps = ("conv1", "bn1", "relu", "maxpool", *taps, "avgpool", "fc", "output")
    page = _page(_report(taps=taps, bad="layer3.9.part5"))
    assert len(page) < 2e6
    svg = page[page.index("<svg") : page.index("</svg>")]
    shown = re.findall(r">([a-z0-9]+)</text>", svg)
    assert {"layer1", "layer2", "layer3"} <= set(shown)
    assert len([name for name in shown if name in taps or name in depth]) <= 6


def test_the_page_replaces_a_file_or_leaves_it(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_html(_report(), path, title="a name that is no text: \udcff")
    assert path.read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(OutputError, match="is a directory"):
        write_html(_report(), tmp_path, title=TITLE)
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


# --- the command --------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(["check", "resnet18", *map(str, arguments)])
        code = exit.value.code
        assert code is None or isinstance(code, int)
        out, err = capsys.readouterr()
        return code or 0, out, err

    return call


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """Lets the command's check give these reports, and build nothing for them."""
    from parity.recipe import Recipe

    reports: list[Report] = []
    monkeypatch.setattr(Recipe, "run", lambda *_: reports.pop())
    return reports


@pytest.mark.parametrize("bad", ["", "fc"])
def test_check_writes_the_page_and_says_where(
    call: Callable, judged: list[Report], tmp_path: Path, bad: str
):
    path = tmp_path / "report.html"
    path.write_text("old")
    judged.append(_report(bad=bad))
    code, out, err = call("--html", path, "--brief", "--size", "64x48")
    assert code == (1 if bad else 0)
    assert err == f"report: {path}\n"
    assert out.splitlines()[-1].startswith("FAIL" if bad else "PASS")
    page = path.read_text("utf-8")
    assert page == _page(_report(bad=bad), out.splitlines()[0])


def test_what_cannot_be_written_is_refused_before_anything_is_checked(
    call: Callable, judged: list[Report], tmp_path: Path
):
    for path, problem in (
        (tmp_path / "no" / "report.html", "there is no folder"),
        (tmp_path, "is a directory"),
    ):
        code, out, err = call("--html", path)  # a check would find no report to give
        assert (code, out) == (3, "")
        assert err.startswith(f"error: {path}: {problem}")


def test_without_matplotlib_check_says_how_to_get_it_before_it_checks(
    call: Callable,
    judged: list[Report],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = call("--html", tmp_path / "report.html")
    assert (code, out) == (2, "")
    assert "pip install 'resnet-twins[plot]'" in err


# --- a real browser -----------------------------------------------------------------


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
    write_html(_report(bad=request.param), path, title=TITLE)
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
