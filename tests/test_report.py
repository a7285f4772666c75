"""The HTML report carries all it needs, says what is missing, and renders in a real browser."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.records.load import load
from analysis.report.page import report
from analysis.tables.assemble import products
from analysis.tables.groups import groups
from mpcc.runs.clusters import CLUSTERS, clusters_bytes
from mpcc.runs.run_dir import read_result, write_json, write_result
from tests.records import SweepBuilder, options, table1_changes, table1_sweep

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def page(folder: Path, **more: Any) -> str:
    records = load([folder], curves=True)
    cells = groups(records)
    made = products(records, cells, options()) + products(records, cells, options("grid"))
    return report(records, cells, made, "welch", **more)


def full_sweep(path: Path) -> SweepBuilder:
    sweep, changes = table1_sweep(path), table1_changes()
    for change in changes:
        for seed in range(3):
            for name in ("samples.png", "reconstructions.png"):
                (sweep.folder(change, seed) / name).write_bytes(PNG)
    curve = [{"iteration": i, "acc_majority": i / 2000} for i in (250, 500, 1500)]
    sweep.trial(changes[0], 0, {"acc_majority": 0.75}, curve=curve)
    cause = "loss/<encoder> is not finite"
    sweep.trial(changes[1], 2, {}, state="diverged", cause=cause, iteration=37)
    return sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of `full_sweep`, as it lies in the sweep's folder of tables."""
    folder = full_sweep(tmp_path_factory.mktemp("whole") / "digits").path
    runs = {folder.name: "f00" for folder in (folder / "trials").iterdir()}
    record = {"tracking_uri": "sqlite:///mlflow.db", "experiment": "7", "runs": runs}
    write_json(folder / "mlflow.json", record)
    return page(folder, place=folder / "tables")


class Checker(HTMLParser):
    """Every element is closed in order, and nothing is fetched from anywhere."""

    VOID = ("meta", "img", "path", "polyline", "polygon", "circle", "br", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [v or "" for k, v in attrs if k == "src" or (k == "href" and tag != "a")]
        self.links += [v or "" for k, v in attrs if k == "href" and tag == "a"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_fetches_nothing(whole: str) -> None:
    checker = Checker()
    checker.feed(whole)
    assert checker.open == []
    assert checker.sources
    assert all(source.startswith("data:image/png;base64,") for source in checker.sources)
    outside = [link for link in checker.links if not link.startswith("#")]
    assert "http://localhost:5000/#/experiments/7/runs/f00" in outside
    records = [link for link in outside if not link.startswith("http://localhost:5000/")]
    assert len([link for link in records if link.endswith("/result.json")]) == 15
    key = SweepBuilder(Path("x")).config(table1_changes()[0], 0).trial_key
    assert f"../trials/{key}/samples.png" in records
    assert all(link.startswith("../trials/") for link in records)


def test_page_has_the_confusion_of_labels_and_clusters_and_says_what_hinders_it(
    tmp_path: Path,
) -> None:
    sweep = full_sweep(tmp_path / "digits")
    labels, clusters = ["one"] * 4 + ["two"] * 5, [1, 1, 1, 0, 0, 0, 0, 0, 2]
    data = clusters_bytes(clusters, [1.0] * 9, labels)
    first, second = table1_changes()[:2]
    for change in (first, second):
        for seed in range(3):
            folder = sweep.folder(change, seed)
            write_result(folder, read_result(folder) or {}, files={CLUSTERS: data})
    for seed in range(3):
        (sweep.folder(second, seed) / CLUSTERS).write_bytes(data[:-9])
    content = page(sweep.path)
    checker = Checker()
    checker.feed(content)
    assert checker.open == []
    (best, worst) = re.findall(r'<svg[^>]*aria-label="[^"]*confusion matrix.*?</svg>', content)
    for drawn in (best, worst):
        squares = re.findall(r'x="(\d+)" y="(\d+)"[^>]*opacity="([\d.]+)"><title>(.*?)<', drawn)
        assert squares == [
            ("0", "0", "0.750", "label one, cluster 1: 3"),
            ("20", "0", "0.250", "label one, cluster 0: 1"),
            ("20", "20", "0.800", "label two, cluster 0: 4"),
            ("40", "20", "0.200", "label two, cluster 2: 1"),
        ]
        words = re.findall(r"<text[^>]*>([^<]*)", drawn)
        marks = ["75", "25", "80", "20", "one", "two", "1", "0", "2"]
        assert words == [*marks, "label ↓", "cluster →"]
    assert len(re.findall(": clusters.csv.gz is damaged: other bytes", content)) == 2
    assert str(tmp_path) not in content


def test_page_has_every_part_with_the_figures_first_and_the_machinery_folded(whole: str) -> None:
    parts = "summary effects seeds curves tables pictures failures trials provenance".split()
    assert re.findall(r'<h2 id="(\w+)">', whole) == parts
    assert "14 of 15 trials done (1 diverged)" in whole
    assert whole.count("<polyline") == 1 and "seed 0: 75.0" in whole
    assert "loss/&lt;encoder&gt; is not finite" in whole
    assert "best seed" in whole and "worst seed" in whole
    assert "drawn by the model, none of them real" in whole and "right of it its recon" in whole
    folded = "".join(re.findall(r"<details>.*?</details>", whole))
    assert "code c0de" in folded
    assert "../trials/" not in re.sub(r"<details>.*?</details>", "", whole)
    assert "Cost: 15 trials, 0.062 core-hours on a processor not recorded" in folded
    for term in ("95 % interval", "p (Holm)"):
        assert whole.count(f"<dt>{term}</dt>") == 1


def test_curves_have_ticks_a_legend_and_the_means_band(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan(table1_changes()[:2], (0, 1))
    for change in table1_changes()[:2]:
        for seed, least in ((0, 0.25), (1, 0.35)):
            curve = [{"iteration": i, "acc_majority": least + i / 3000} for i in (500, 1000, 1500)]
            sweep.trial(change, seed, {"acc_majority": least + 0.5}, curve=curve)
    content = page(sweep.path)
    assert content.count('<polyline class="mean"') == 2 and content.count("<polygon") == 2
    assert "seed 1</span>" in content and "mean; grey: its 95 % interval" in content
    ticks = re.findall(r"<text[^>]*>([\d.,]+)</text>", content)
    assert ticks[:6] == ["41.7", "0", "63.3", "750", "85.0", "1,500"]


def test_page_is_the_same_on_another_machine(tmp_path: Path) -> None:
    first = page(full_sweep(tmp_path / "here" / "digits").path)
    assert page(full_sweep(tmp_path / "there" / "digits").path) == first
    assert str(tmp_path) not in first


def test_pictures_can_be_left_out(tmp_path: Path) -> None:
    content = page(full_sweep(tmp_path / "digits").path, pictures=False)
    assert "drawn by the model" not in content and 'id="pictures"' not in content
    assert 'id="effects"' in content  # A figure of the records is no sample sheet.


def test_sweep_under_way_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan(table1_changes())
    for change in table1_changes()[:3]:
        for seed in range(3):
            sweep.trial(change, seed, {"acc_majority": 0.5 + seed / 10})
    content = page(sweep.path)
    assert 'class="badge open">9 of 15 trials done (6 planned)' in content
    monkeypatch.setattr("analysis.report.page.MAX_PANELS", 1)
    for seed in range(3):
        shutil.rmtree(sweep.folder(table1_changes()[0], seed))
    assert "12 planned" not in (content := page(sweep.path)) and "(9 planned)" in content


def test_sweep_without_any_result_still_has_a_page(tmp_path: Path) -> None:
    content = page(SweepBuilder(tmp_path / "s").plan(table1_changes()).path)
    assert "0 of 15 trials done (15 planned)" in content


def test_paragraph_names_the_best_and_how_sure_it_is(tmp_path: Path) -> None:
    sweep = table1_sweep(tmp_path / "s", seeds=range(5)).path
    content = page(sweep)
    text = re.sub(r"<[^>]+>", "", content.split('<h2 id="summary">')[1].split("<h2")[0])
    assert "(encoder updates per generator update: 1, 2, 4) and eta_p" in text
    assert "Every trial finished; none diverged, saturated or collapsed." in text
    assert "five configurations with five seeds each" in text
    assert "came with esteps 4, eta_p 5e-3; every other configuration differs" in text
    assert (
        "Yes. k-means on the same pixels reaches 79.0 %, outside the 95 % interval of the best"
        in text
    )
    assert re.search("best configuration, [0-9.]+ to [0-9.]+ on the seeds that chose it", text)
    trials = load([sweep]).trials
    values, cells = trials["acc_majority"], trials.groupby("cell_key")["acc_majority"]
    within = (
        100
        * ((values - cells.transform("mean")) ** 2).sum()
        / ((values - values.mean()) ** 2).sum()
    )
    seeds = f"Of the variation in Acc, {within:.0f} % is between the seeds of one configuration"
    assert seeds in text and " % cannot be attributed to a single axis" in text
    assert "3 % goes with esteps (p" in text
    assert (
        "Acc: every cluster takes its most frequent label (eq. 11, also called purity); higher"
        in content
    )
    assert "before you quote it, run it on fresh seeds" in text


def test_page_names_its_data_and_says_what_each_variant_is() -> None:
    content = page(Path(__file__).resolve().parents[1] / "results" / "claim6-mnist8")
    assert "<h1>MPCC ablation: mnist</h1>" in content  # The plan began from the preset digits.
    assert "no-floor: sigma_min=0 (Floor of the components&#x27; standard deviation" in content


def test_page_has_every_note_and_keeps_capitals(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path / "s").plan([{"n_clusters": 20}], (0,), grid="K")
    for seed in range(53):
        sweep.trial({"n_clusters": 20}, seed, {"acc_majority": 0.5})
    content = page(sweep.path)
    assert content.count("<li>trial ") == 52
    assert "K 20 gave accuracy" in content and "k 20" not in content
    assert "Grey italics" not in content


def browse(file: Path, *options: str) -> str:
    """What headless chromium prints for a page."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--hide-scrollbars", f"--user-data-dir={file.parent / 'profile'}"]
    command = [str(CHROMIUM), *flags, *options, file.as_uri()]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, cwd=file.parent
    ).stdout


@pytest.mark.skipif(not CHROMIUM, reason="no chromium: the page is not tried in a browser")
@pytest.mark.parametrize("width", [1280, 500])  # a headless window is no narrower than that
def test_page_renders_and_sorts_in_a_browser(tmp_path: Path, width: int) -> None:
    """A click on the accuracy heading puts the lowest first and keeps published rows below ours."""
    probe = """<script>
    const t = document.querySelector("table.sort");
    t.querySelectorAll("th button")[2].click(); t.querySelectorAll("th button")[2].click();
    const rows = [...t.tBodies[0].rows];
    const picture = document.querySelector("label img"); picture.click();
    const large = picture.getBoundingClientRect().width; picture.click();
    document.title = JSON.stringify([rows[0].cells[2].textContent, rows[1].className,
      rows[rows.length - 1].className, document.documentElement.scrollWidth <= innerWidth,
      innerWidth, large]);
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(page(full_sweep(tmp_path / "digits").path).replace("</body>", probe))
    shown = browse(file, f"--window-size={width},900", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title
    best, second, last, fits, inner, large = title.group(1).strip("[]").split(",")
    assert best.startswith('"82.') and second == '"paper grey"' and last == '"reference"'
    assert fits == "true" and int(inner) == int(large) == width


@pytest.mark.skipif(not CHROMIUM, reason="no chromium: no screenshot is taken")
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshot_shows_text_seeds_and_pictures_within_the_width(
    tmp_path: Path, width: int
) -> None:
    """Of the pixels: the edges are blank, and the colours of what must be drawn are there."""
    from matplotlib.image import imread

    file, height = tmp_path / "page.html", 9000
    file.write_text(page(full_sweep(tmp_path / "digits").path))
    browse(file, f"--window-size={width},{height}", f"--screenshot={tmp_path / 'page.png'}")
    pixels = (imread(tmp_path / "page.png")[..., :3] * 255).round()
    assert pixels.shape == (height, width, 3)
    assert (pixels[:, :5] == 255).all() and (pixels[:, -5:] == 255).all()

    def drawn(red: int, green: int, blue: int) -> int:
        return int((abs(pixels - (red, green, blue)).max(axis=2) <= 8).sum())

    assert drawn(0, 0x72, 0xB2) > 500, "no rings of seeds"
    assert drawn(0xD5, 0x5E, 0) > 10, "no dashes of k-means"
    assert drawn(0x1A, 0x1A, 0x1A) > 3000, "no text"
    text = (pixels.max(axis=2) < 128).any(axis=1)
    assert text[:200].any() and text[800:2000].mean() > 0.2, "the first screens are blank"


@pytest.mark.skipif(
    not (CHROMIUM and shutil.which("pdftotext")), reason="no chromium or pdftotext: not printed"
)
def test_printed_table_has_its_headings_on_every_page(tmp_path: Path) -> None:
    changes = [{"n_encoder_steps": i + 1, "prior_lr": 1e-3} for i in range(90)]
    sweep = SweepBuilder(tmp_path / "s").plan(changes, (0,))
    for i, change in enumerate(changes):
        sweep.trial(change, 0, {"acc_majority": 0.5 + i / 500})
    file = tmp_path / "page.html"
    file.write_text(page(sweep.path))
    browse(file, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    command = ["pdftotext", "-layout", "page.pdf", "-"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    pages = done.stdout.split("\f")
    rows = [re.findall(r"^ +\d+ +1e-3 ", text, re.MULTILINE) for text in pages]
    long = [text for text, found in zip(pages, rows, strict=True) if len(found) > 20]
    assert len(long) >= 2 and all("esteps" in text and "Acc, %" in text for text in long)
