"""A report shows what the files of its runs say, in one page that needs nothing else."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_lightning.errors import UserError
from clip_lightning.records import EMA, Record
from clip_lightning.reliability.lock import acquire
from clip_lightning.report.__main__ import main
from clip_lightning.report.charts import Axes, sections
from clip_lightning.report.page import page
from clip_lightning.report.read import differences, distinguishing, read_run, read_runs
from tests.support.run_directories import write_run

FURTHER = (
    Record(
        what="acc1", value=0.6, low=0.58, high=0.62, n=960, chance=0.125, task="shape", weights=EMA, samples_seen=80
    ),
    Record(what="acc5", value=0.9, task="shape", weights=EMA, samples_seen=80),
    Record(what="skipped_steps", value=3.0, samples_seen=80),
    Record(what="skip_windows", value=4096.0, n=512, samples_seen=48),
    Record(what="rankme_image", value=55.5, task="representation", samples_seen=80),
    Record(what="rankme_text", value=44.5, task="representation", samples_seen=80),
    Record(what="acc1", value=0.999, task="shape", variant="contextless", n=960, chance=0.125, samples_seen=80),
    Record(what="map11", value=0.731, low=0.7, high=0.76, task="voc2007", n=4952, samples_seen=80),
    Record(
        what="recall_at_1", value=0.321, low=0.3, high=0.34, n=1024, chance=0.001, task="validation", samples_seen=80
    ),
    Record(what="image_to_text_recall_at_5", value=0.654, n=1024, task="validation", samples_seen=80),
    Record(what="recall_at_1", value=0.222, task="flickr30k", n=1000, samples_seen=80),
)


class Page(HTMLParser):
    """What a page holds.

    Attributes:
        text: what is to be read; tags: with their attributes; scripts: contents by id.
    """

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text, self.scripts = "", dict[str, str]()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside = ""
        self.feed(content)
        self.charts = json.loads(self.scripts["charts"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (dict(attrs).get("id") or "code") if tag == "script" else tag if tag == "style" else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        else:
            self.text += data + " "


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "<one>", further=FURTHER, code="commit abc1234 (1 file changed)")
    (run / "figures").mkdir()
    for name in ("predictions", "retrieval", "loss"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(run / f"figures/{name}.png")
    (run / "divergence.jsonl").write_text(json.dumps({"problem": "NaN", "steps": [{"samples_seen": 48}]}) + "\n")
    return run


def charts_of(content: str) -> dict[str, Any]:
    return {chart["title"]: chart for chart in Page(content).charts["charts"]}


def test_the_page_shows_results_faults_and_identity(run: Path) -> None:
    found = Page(page(read_runs([run])))
    for words in (
        "finished", "80 of 80", "612k", "1.6e+11", "0:50", "2 truncated", "node2", "cluster.devices: 1 -> 2", "4,096",
        "NaN", "8aa08f0de8717210", "torch: 2.14.1", "commit abc1234 (1 file changed)", "global_batch: 16",
        "50.0% [48.0%, 52.0%]", "60.0% [58.0%, 62.0%]", "shape (ema)", "12.5%", "5.0% of training time",
        "73.1% [70.0%, 76.0%]", "32.1% [30.0%, 34.0%]", "65.4%", "22.2%", "5 with 1,024 candidates",
        "small_resnet, 32 pixels", "2026-11-30 09:00:00 UTC",
        read_run(run).science,
    ):  # fmt: skip
        assert words in found.text, words
    assert "99.9%" not in found.text  # of other prompts than the task's own


def test_the_page_requests_nothing_and_names_what_it_shows(run: Path) -> None:
    content = page(read_runs([run]))
    found = Page(content)
    sources = [attributes[key] or "" for _, attributes in found.tags for key in ("src", "href") if key in attributes]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "default-src 'none'" in content
    assert not re.search(r"@import|url\(", found.scripts["style"])
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [(image["alt"] or "").split(":")[0] for image in images] == ["Predictions", "Retrieval"]
    charts = [attributes for _, attributes in found.tags if attributes.get("class") == "chart"]
    assert len(charts) == len(found.charts["charts"]) > 8
    assert all("Last values: " in (chart["aria-label"] or "") for chart in charts)
    identifiers = [attributes["id"] for _, attributes in found.tags if attributes.get("id")]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.slow
def test_names_from_files_cannot_become_markup(run: Path) -> None:
    content = page(read_runs([run]))
    assert "<one>" not in content
    assert "&lt;one&gt;" in content


def test_plotly_is_in_the_page_once(run: Path) -> None:
    script = gzip.decompress(base64.b64decode(Page(page(read_runs([run]))).scripts["plotly"]))
    assert script.startswith(b"/**\n* plotly.js v")
    assert b"Plotly" in script


def test_charts_hold_the_records(run: Path) -> None:
    charts = charts_of(page(read_runs([run])))
    loss = charts["Training loss"]
    assert loss["series"][0]["y"] == [3.0, 2.5, 2.25, 2.0, 1.5]
    assert loss["series"][0]["x"]["samples"] == [16, 32, 48, 64, 80]
    assert loss["levels"] == [[pytest.approx(np.log(16)), "guessing in a batch of 16"]]
    shape = charts["shape"]
    assert shape["is_share"]
    assert shape["series"][0]["low"] == [0.38, 0.48]
    assert shape["series"][1]["label"] == "averaged weights"
    assert shape["levels"] == [[0.125, "chance"]]
    assert [one["label"] for one in charts["RankMe"]["series"]] == ["image", "text"]
    assert charts["voc2007"]["series"][0]["y"] == [0.731]
    assert charts["voc2007"]["levels"] == []
    assert charts["Recall at 1: flickr30k, mean of both directions"]["unit"] == "recall"
    assert charts["Skipped steps"]["series"][0]["y"] == [3.0]


def test_flops_and_hours_are_those_of_the_intervals(run: Path) -> None:
    axes = Axes.of(read_run(run))
    # 8e9 FLOP/s at 4 samples/s are 2e9 FLOPs a sample, and each step of 16 samples took 10 s.
    assert axes.flops.tolist() == [2e9 * samples for samples in (0, 16, 32, 48, 64, 80)]
    assert axes.at(np.array([24.0]))["hours"] == [pytest.approx(15 / 3600, rel=1e-5)]


def test_a_value_that_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", losses=(3.0, float("nan"), float("inf"), 2.0, 1.5))
    content = page(read_runs([run]))
    assert charts_of(content)["Training loss"]["series"][0]["y"] == [3.0, None, None, 2.0, 1.5]


def test_a_run_that_was_stopped_is_not_shown_as_running_by_its_own_process(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", status="stopped")
    lock = acquire(run)
    try:
        assert read_run(run).state == "running"
        assert read_run(run, has_ended=True).state == "stopped"
    finally:
        lock.release()


@pytest.mark.slow
def test_several_runs_show_their_differences_first(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", accuracy=0.25),
        write_run(tmp_path / "b", "compute.learning_rate=0.003"),
        write_run(tmp_path / "c", "compute.global_batch=32", "runs=elsewhere"),
    ]
    found = read_runs(runs)
    assert dict(differences(found)) == {
        "compute.learning_rate": [0.002, 0.003, 0.002],
        "compute.global_batch": [16, 16, 32],
    }
    content = page(found)
    text = Page(content).text
    assert text.index("Differences of config") < text.index("Results") < text.index("Training loss")
    assert "25.0% [23.0%, 27.0%]" in text
    loss = charts_of(content)["Training loss"]
    assert [one["run"] for one in loss["series"]] == [0, 1, 2]
    assert [one["label"] for one in loss["series"]] == ["a", "b", "c"]
    assert len(loss["levels"]) == 2
    assert sum(attributes.get("name") == "run" for _, attributes in Page(content).tags) == 3


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["tiny-scenes-a1"], ["tiny-scenes-a1"]),
        (["tiny-scenes-a1", "tiny-scenes-b2"], ["a1", "b2"]),
        (["tiny-scenes-a1", "tiny-yfcc-a1", "tiny-yfcc-b2"], ["scenes-a1", "yfcc-a1", "yfcc-b2"]),
        (["a", "b-c"], ["a", "b-c"]),
        (["a", "a-c"], ["a", "a-c"]),
    ],
)
def test_labels_leave_out_what_all_names_begin_with(names: list[str], labels: list[str]) -> None:
    assert distinguishing(names, "-") == labels


@pytest.mark.slow
def test_runs_of_one_name_are_labelled_by_their_folders(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "x/r"), write_run(tmp_path / "y/r")]
    assert [run.label for run in read_runs(runs)] == ["x/r", "y/r"]
    with pytest.raises(UserError, match="named twice"):
        read_runs([runs[0], runs[0]])
    with pytest.raises(UserError, match="not the directory of a run"):
        read_runs([tmp_path])


@pytest.mark.slow
def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    for path in run.iterdir():
        if path.name not in ("config.yaml", "status.json"):
            path.unlink()
    assert sections(read_runs([run])) == []
    assert "What was trained" in page(read_runs([run]))
    (run / "metrics.jsonl").write_text('{"what": "loss", "value": 2.0, "samples_seen": 16}\n{"what": "lo')
    assert [chart.title for section in sections(read_runs([run])) for chart in section.charts] == ["Training loss"]


@pytest.mark.slow
def test_the_command_writes_beside_the_run_or_where_it_is_given(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = write_run(tmp_path / "other")
    assert main([str(other)]) == main([str(other), str(run)]) == main([str(other), "--out", "page.html"]) == 0
    assert capsys.readouterr().out.split() == [str(other / "report.html"), "comparison.html", "page.html"]
    assert (tmp_path / "comparison.html").stat().st_size > 1_000_000
    with pytest.raises(UserError, match="cannot be written"):
        main([str(other), "--out", "absent/page.html"])
