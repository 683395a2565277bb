"""The report as a page: what it says, and that it stands alone."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from parity import GATES, OutputError, Report
from parity.judging.report import GateResult, Row
from parity.reports.page import write_html
from tests.support.command import Called
from tests.support.reports import TAPS, TITLE, page_of, report_of, row_of


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
    assert _Outline(page_of(report_of())).text[1:3] == [
        "PASS",
        "both compute the same network",
    ]
    text = _Outline(page_of(report_of(bad="layer2.0.bn1"))).text
    assert text[0] == f"FAIL: {TITLE}"
    assert text[1] == "FAIL"
    assert text[2].endswith("first divergence at layer2.0.bn1")
    assert text[3] == "wrong by itself: layer2.0.bn1"
    assert text[4:6] == ["checked", TITLE]


def test_what_was_checked_follows_in_short():
    text = " ".join(_Outline(page_of(report_of())).text)
    assert "basic blocks 1-2, widths 8-16, 7 classes" in text
    assert "2 × 3 × 64 × 48" in text
    assert "seed of labels 7" in text
    assert "versions torch 2.99" in text
    assert "inputs sha256 0123abcd" in text
    assert "absent" not in text


def test_every_gate_is_there_with_its_verdict():
    report = report_of(bad="fc")
    text = _Outline(page_of(report)).text
    gates = text[text.index("Gates") : text.index("Error against depth")]
    for gate in report.gates:
        start = gates.index(gate.gate)
        found = gates[start : start + 4]
        assert found[1] == gate.what
        assert found[3] == ("pass" if gate.ok else "FAIL")


def test_skipped_gates_say_why():
    skipped = GateResult("G5", "top-1 class", (), "there are no classes")
    report = Report((*report_of(gates=("G1",)).gates, skipped), {}, {})
    text = _Outline(page_of(report)).text
    assert text[text.index("there are no classes") + 1] == "skipped"


def test_a_page_asks_for_no_other_file():
    page = page_of(report_of(bad="fc"))
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
    report = report_of(bad=evil, taps=("conv1", evil, "output"))
    page = page_of(report, f"{evil}.png")
    outline = _Outline(page)
    assert "script" not in outline.tags
    assert outline.text[0] == f"FAIL: {evil}.png"
    assert sum(evil in text for text in outline.text) > 10


def test_a_page_is_the_same_for_the_same_report():
    page = page_of(report_of(bad="fc"))
    assert page == page_of(report_of(bad="fc"))
    code = (
        "from tests.support.reports import page_of, report_of; "
        "import sys; sys.stdout.buffer.write(page_of(report_of(bad='fc')).encode())"
    )
    other = subprocess.check_output([sys.executable, "-c", code])
    assert other.decode() == page
    assert not re.search(r"20\d\d-\d\d-\d\d|Matplotlib", page)


def test_the_settings_of_a_users_matplotlib_change_nothing():
    import matplotlib

    page = page_of(report_of())
    looks: Any = {"font.size": 20, "svg.fonttype": "path", "axes.linewidth": 5}
    with matplotlib.rc_context(looks):
        assert page_of(report_of()) == page
        assert matplotlib.rcParams["font.size"] == 20


def test_ids_are_not_given_twice_and_lead_somewhere():
    page = page_of(report_of(bad="fc"))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def _marked(page: str, what: str) -> int:
    """Marks in the wide drawing of the outputs."""
    groups = re.findall(rf'<g id="output-wide-{what}">(.*?)</g>\s*</g>', page, re.S)
    return sum(group.count("<use") for group in groups)


def test_a_failed_reports_plot_marks_what_failed_and_names_the_first():
    page = page_of(report_of(bad="layer2.0"))
    assert _marked(page, "failed") == 3
    assert _marked(page, "alone") == 1
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert ">layer2.0</text>" in svg
    good = page_of(report_of())
    assert _marked(good, "failed") == _marked(good, "alone") == 0
    assert ">wrong by itself<" not in good


@pytest.mark.parametrize("error", [inf, nan, 0.0])
def test_errors_that_have_no_place_on_the_axis_are_drawn_all_the_same(error: float):
    page = page_of(report_of(bad="layer2.0", error=error))
    assert _marked(page, "failed") == (0 if error == 0 else 3)
    drawn = re.findall(r'<(?:path|use)[^>]* (?:d|x|y)="([^"]*)"', page)
    assert not any("nan" in d or "inf" in d for d in drawn)
    assert page.count("<svg") == 4


def test_a_network_that_raised_is_shown_though_nothing_was_measured():
    row = Row("layer2.1", False, note="raised TypeError: <shapes>")
    gates = tuple(GateResult(gate, "both networks run", (row,)) for gate in GATES)
    for shapes in ({}, {"conv1": (1, 2)}):
        page = page_of(Report(gates, shapes, {}))
        assert "first divergence at layer2.1 raised TypeError: &lt;shapes&gt;" in page
        assert "<svg" not in page


def test_one_twin_that_raised_is_marked_among_what_the_other_gave():
    row = Row("layer2.0", False, note="raised TypeError: no")
    gates = (*report_of(gates=("G1",)).gates, GateResult("G2", "both run", (row,)))
    page = page_of(Report(gates, dict.fromkeys(TAPS, (1,)), {}))
    assert _marked(page, "failed") == 1


@pytest.mark.parametrize("gates", [(), ("G0",), ("G1",), ("G2 training",), ("G5",)])
def test_checks_of_some_gates_give_a_page(gates: tuple[str, ...]):
    page = page_of(report_of(gates=gates))
    _Outline(page)
    assert page.count("<svg") == (2 if "G1" in gates or "G2 training" in gates else 0)
    assert f"<h1>{'PASS' if gates else 'FAIL'}</h1>" in page


def test_the_gradients_have_a_plot_of_their_own():
    headings = re.findall("<h2>(.*?)</h2>", page_of(report_of()))
    plots = ["Error against depth", "Error against depth, backwards"]
    assert headings == ["Gates", *plots, "Worst elements", "Kinks", "Everything"]


def test_the_worst_elements_are_those_closest_to_their_limits_eight_at_most():
    taps = tuple(f"layer1.{i}" for i in range(30))
    rows = tuple(row_of(t, (i + 1) * 1e-8, 1e-6, "output") for i, t in enumerate(taps))
    report = Report((GateResult("G2", "all", rows),), dict.fromkeys(taps, (1,)), {})
    page = page_of(report)
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
    page = page_of(report_of(taps=taps, bad="layer3.9.part5"))
    assert len(page) < 2e6
    svg = page[page.index("<svg") : page.index("</svg>")]
    shown = re.findall(r">([a-z0-9]+)</text>", svg)
    assert {"layer1", "layer2", "layer3"} <= set(shown)
    assert len([name for name in shown if name in taps or name in depth]) <= 6


def test_the_page_replaces_a_file_or_leaves_it(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_html(report_of(), path, title="a name that is no text: \udcff")
    assert path.read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(OutputError, match="is a directory"):
        write_html(report_of(), tmp_path, title=TITLE)
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


# --- the command --------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """Lets the command's check give these reports, and build nothing for them."""
    from parity.recipe import Recipe

    reports: list[Report] = []
    monkeypatch.setattr(Recipe, "run", lambda *_: reports.pop())
    return reports


@pytest.mark.parametrize("bad", ["", "fc"])
def test_check_writes_the_page_and_says_where(
    call: Called, judged: list[Report], tmp_path: Path, bad: str
):
    path = tmp_path / "report.html"
    path.write_text("old")
    judged.append(report_of(bad=bad))
    out, err = call(
        *("check", "resnet18", "--html", path, "--brief", "--size", "64x48"),
        code=1 if bad else 0,
    )
    assert err == f"report: {path}\n"
    assert out.splitlines()[-1].startswith("FAIL" if bad else "PASS")
    page = path.read_text("utf-8")
    assert page == page_of(report_of(bad=bad), out.splitlines()[0])


def test_what_cannot_be_written_is_refused_before_anything_is_checked(
    call: Called, judged: list[Report], tmp_path: Path
):
    for path, problem in (
        (tmp_path / "no" / "report.html", "there is no folder"),
        (tmp_path, "is a directory"),
    ):
        # A check would find no report to give.
        line = call.error("check", "resnet18", "--html", path, code=3)
        assert line.startswith(f"error: {path}: {problem}")


def test_without_matplotlib_check_says_how_to_get_it_before_it_checks(
    call: Called,
    judged: list[Report],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = call.error("check", "resnet18", "--html", tmp_path / "report.html")
    assert "pip install 'resnet-twins[plot]'" in line
