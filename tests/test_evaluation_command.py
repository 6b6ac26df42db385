"""`refinesam evaluate` with all it can measure, the paper's tables, and the HTML report."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import formula
import refinesam
from evaluation_fakes import annotation
from refinesam.cli import main
from refinesam.errors import DatasetError
from refinesam.evaluation import paper_tables
from refinesam.evaluation.calibration import calibration
from refinesam.evaluation.charts import bar_chart, curve, histogram, reliability_diagram
from refinesam.evaluation.coco import CocoScores
from refinesam.evaluation.paper_tables import (
    PAPER_TABLES,
    PaperTable,
    measure_paper_table,
    missing_weights,
    paper_table_document,
    printed_paper_table,
)
from refinesam.images import write_png
from refinesam.models.config import CONFIGS
from refinesam.weights import _uninitialised_model

HW = (60, 80)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine several threads wait for each other far longer than this small model computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, two with objects, as COCO and as LVIS files, and a detector's boxes."""
    path = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (path / "images").mkdir()
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a <cell>"}]}
    detections = []
    for number in (1, 2, 3):
        picture = cv2.GaussianBlur(rng.integers(0, 256, (*HW, 3), dtype=np.uint8), (0, 0), 5)
        write_png(path / "images" / f"{number}.png", picture)
        document["images"].append({"id": number, "file_name": f"{number}.png", "height": HW[0], "width": HW[1]})
        for index in range((0, 1, 2, 0)[number]):
            mask = np.zeros(HW, bool)
            mask[10 + 5 * number : 35 + 5 * number, 5 + 30 * index : 30 + 30 * index] = True
            document["annotations"].append(annotation(len(document["annotations"]) + 1, mask, image_id=number))
        detections.append({"image_id": number, "category_id": 1, "bbox": [5, 15, 25, 25], "score": 0.1 * number})
    (path / "coco.json").write_text(json.dumps(document))
    (path / "boxes.json").write_text(json.dumps(detections))
    for image in document["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    document["categories"][0]["frequency"] = "c"
    (path / "lvis.json").write_text(json.dumps(document))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object, command: str = "evaluate") -> int:
    monkeypatch.setattr(sys, "argv", ["refinesam", command, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def given(data: Path, name: str = "coco.json") -> list[object]:
    return ["--annotations", data / name, "--images", data / "images"]


class Page(HTMLParser):
    """Tags, links to elsewhere, and text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_in_one_run(
    monkeypatch: pytest.MonkeyPatch, data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {kind: tmp_path / f"report.{kind}" for kind in ("json", "parquet", "html")}
    files = [part for kind, path in out.items() for part in (f"--{kind}", path)]
    asked = ["--refine", "--ap", "boxes", "--weights", weights, *files]
    assert run(monkeypatch, *given(data), *asked) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "mIoU, protocol box" in printed and "Mask AP (COCO rules), 2 images" in printed
    content = json.loads(out["json"].read_text())
    assert (content["summary"]["objects"], content["ap"]["images"]) == (3, 2)
    assert content["ap"]["first"].keys() == CocoScores.__dataclass_fields__.keys()
    assert content["ap"]["refined"] is not None
    assert [row["iou"] for row in pq.read_table(out["parquet"]).to_pylist()] == [
        one["iou"] for one in content["records"]
    ]
    page = Page(out["html"].read_text("utf-8"))
    assert page.sources and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("svg") == 4
    for words in ("random.safetensors", "a <cell>", "Mask AP", "expected calibration error", "Worst", "with AMR"):
        assert words in page.text, words
    assert f"{content['summary']['miou']:.3f}" in page.text
    assert str(tmp_path) not in page.text and str(data) not in page.text


def test_a_detectors_boxes(
    monkeypatch: pytest.MonkeyPatch, data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    asked = ["--protocol", "noisy-box", "--ap", data / "boxes.json", "--weights", weights, "--json", path]
    assert run(monkeypatch, *given(data), *asked) == 0
    content = json.loads(path.read_text())
    assert (content["summary"]["protocol"], content["ap"]["prompts"]) == ("noisy-box", "boxes.json")
    assert content["ap"]["images"] == 3, "the one without objects, too"
    assert content["ap"]["refined"] is None


def test_a_bad_record_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((data / "coco.json").read_text())
    first = content["annotations"][0]
    content["annotations"] += [first | {"id": 10, "bbox": [1]}, first | {"id": 11, "segmentation": [[1, 2]]}, first, 7]
    content["images"].append({"id": 9})
    (tmp_path / "worse.json").write_text(json.dumps(content))
    found = []
    for source in (data / "coco.json", tmp_path / "worse.json"):
        path = tmp_path / f"from_{source.name}"
        asked = ["--annotations", source, "--images", data / "images", "--ap", "boxes", "--proposals"]
        assert run(monkeypatch, *asked, "--limit", "2", "--weights", weights, "--json", path) == 0
        found.append(json.loads(path.read_text()))
    good, worse = found
    assert worse["summary"]["miou"] == good["summary"]["miou"] and worse["proposals"] == good["proposals"]
    assert worse["ap"]["first"] == good["ap"]["first"]
    assert worse["summary"]["objects_failed"] == 4, "of five damaged records one is an image without objects"
    assert len(worse["summary"]["failures"]) == 5
    assert "4 objects could not be evaluated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("neg_category_ids", None, "images[2].neg_category_ids must be list"),
        ("neg_category_ids", [1, 7], "images[2].neg_category_ids holds 7"),
        ("not_exhaustive_category_ids", ["1"], "images[2].not_exhaustive_category_ids holds '1'"),
        ("not_exhaustive_category_ids", [True], "images[2].not_exhaustive_category_ids holds True"),
    ],
)
@pytest.mark.parametrize("boxes", ["prompts", "boxes.json"])
def test_a_bad_list_of_lvis_costs_its_image_alone(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    boxes: str,
    key: str,
    value: Any,
    named: str,
) -> None:
    content = json.loads((data / "lvis.json").read_text())
    detections = json.loads((data / "boxes.json").read_text())
    del content["images"][2], detections[2]
    (tmp_path / "boxes.json").write_text(json.dumps(detections))
    (tmp_path / "good.json").write_text(json.dumps(content))
    extra = {"id": 3, "file_name": "3.png", "height": HW[0], "width": HW[1]}
    content["images"].append(extra | {"neg_category_ids": [], "not_exhaustive_category_ids": []} | {key: value})
    content["annotations"].append(content["annotations"][0] | {"id": 9, "image_id": 3})
    (tmp_path / "worse.json").write_text(json.dumps(content))
    found = []
    for name in ("good.json", "worse.json"):
        path = tmp_path / f"from_{name}"
        asked = ["--lvis", "--ap", tmp_path / boxes if "." in boxes else boxes, "--weights", weights, "--json", path]
        assert run(monkeypatch, "--annotations", tmp_path / name, "--images", data / "images", *asked) == 0
        found.append(json.loads(path.read_text()))
    good, worse = found
    assert worse["summary"]["miou"] == good["summary"]["miou"] and worse["ap"]["first"] == good["ap"]["first"]
    told = [failure["reason"] for failure in worse["summary"]["failures"]]
    assert len(told) == 2 and named in told[0] and "annotations[3].image_id 3" in told[1]
    assert "1 objects could not be evaluated" in capsys.readouterr().out


def test_lvis_and_both_programs(monkeypatch: pytest.MonkeyPatch, data: Path, weights: Path, tmp_path: Path) -> None:
    found = []
    for backend in ("pycocotools", "faster"):
        path = tmp_path / f"{backend}.json"
        asked = ["--lvis", "--backend", backend, "--weights", weights, "--json", path]
        assert run(monkeypatch, *given(data, "lvis.json"), *asked) == 0
        found.append(json.loads(path.read_text())["ap"]["first"])
    assert found[0].pop("per_category") == pytest.approx(found[1].pop("per_category"), abs=1e-9)
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    assert found[0]["ap_common"] == found[0]["ap"] and found[0]["ap_rare"] is None


def test_clicks(
    monkeypatch: pytest.MonkeyPatch, data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summaries = []
    for feed_back in (True, False):
        out = {kind: tmp_path / f"clicks{feed_back}.{kind}" for kind in ("json", "parquet", "html")}
        files = [part for kind, path in out.items() for part in (f"--{kind}", path)]
        option = "--feed-back" if feed_back else "--no-feed-back"
        asked = ["--protocol", "noc", option, "--limit", "1", "--weights", weights, *files]
        assert run(monkeypatch, *given(data), *asked) == 0
        content = json.loads(out["json"].read_text())
        summaries.append(content["summary"])
        assert content["summary"]["objects"] == len(content["records"]) == pq.read_table(out["parquet"]).num_rows == 1
        page = Page(out["html"].read_text())
        assert "Number of clicks" in page.text and page.tags.count("svg") == 1
    assert [summary["fed_back"] for summary in summaries] == [True, False]
    assert "clicks (NoC)" in capsys.readouterr().out


def test_proposals(
    monkeypatch: pytest.MonkeyPatch, data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    assert run(monkeypatch, *given(data), "--proposals", "--limit", "1", "--weights", weights, "--json", path) == 0
    proposals = json.loads(path.read_text())["proposals"]
    assert 0 <= proposals["ar10"] <= proposals["ar1000"] <= 1
    assert "ar1000_small" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ([], "ConfigError", "Give --annotations"),
        (["COCO", "--ap", "nowhere.json"], "ConfigError", "nowhere.json is neither boxes nor prompts"),
        (["COCO", "--protocol", "noc", "--ap", "prompts"], "ConfigError", "give --ap boxes"),
        (["COCO", "--protocol", "noc", "--refine"], "ConfigError", "leave one of them out"),
        (["COCO", "--protocol", "points-1", "--choose", "box", "--weights", "WEIGHTS"], "ConfigError", "have none"),
        (["COCO", "--ap", "COCO.json", "--weights", "WEIGHTS"], "DatasetError", "must be a list of COCO results"),
        (["COCO", "--lvis", "--weights", "WEIGHTS"], "DatasetError", "frequency"),
        (["COCO", "--limit", "0", "--weights", "WEIGHTS"], "ConfigError", "limit_images"),
    ],
)
def test_bad_calls_end_with_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
    error: str,
    words: str,
) -> None:
    places = {"WEIGHTS": weights, "COCO.json": data / "coco.json"}
    arguments = [one for part in asked for one in (given(data) if part == "COCO" else [places.get(part, part)])]
    assert run(monkeypatch, *arguments) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert error in message and words in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("asked", "missing", "words"),
    [
        (["--lvis"], None, "frequency"),
        (["--ap", "prompts", "--backend", "faster"], "faster_coco_eval", "refinesam[eval]"),
        (["--parquet", "r.parquet"], "pyarrow", "refinesam[eval]"),
        (["--json", "images"], None, "it is a folder"),
        (["--html", "read_only.html"], None, "it is read-only"),
    ],
)
def test_what_the_results_need_is_looked_at_before_an_image_is(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
    missing: str | None,
    words: str,
) -> None:
    def encode(*_: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("refinesam.session.Session.encode", encode)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "read_only.html").touch(0o400)
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    assert run(monkeypatch, *given(data), *asked, "--weights", weights) == 1
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------- the paper's tables


def test_the_published_numbers_are_those_of_the_paper() -> None:
    first, second = PAPER_TABLES[1], PAPER_TABLES[2]
    assert [list(numbers) for numbers in first.published.values()] == [
        [75.7, 42.3, 57.4, 46.2, 26.7],
        [69.03, 45.2, 57.3, 49.0, 38.0],
        [77.0, 44.4, 60.1, 48.3, 28.4],
        [70.73, 45.2, 57.1, 49.0, 38.2],
    ]
    assert [list(numbers) for numbers in second.published.values()] == [
        [69.03, 45.2, 59.2, 54.7, 44.7],
        [75.55, 54.7, 68.5, 59.2, 44.7],
        [70.73, 45.2, 57.4, 52.8, 42.7],
        [75.17, 52.8, 67.4, 57.4, 42.7],
    ]
    assert (first.protocol, first.refine, second.protocol) == ("box", None, "random-2")
    assert second.refine is not None and second.refine.rule == "paper_equation"


def own(weights: Path, number: int = 2) -> PaperTable:
    """A paper's table with one model that is here and one that is not."""
    return replace(
        PAPER_TABLES[number], weights={"EfficientSAM-Ti": str(weights), "EfficientSAM-S": "nowhere.safetensors"}
    )


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_here_is_measured_and_the_rest_named(number: int, data: Path, weights: Path) -> None:
    paper, told = own(weights, number), []
    measured = measure_paper_table(paper, data / "coco.json", data / "images", refinesam.load, on_missing=told.append)
    assert told == ["EfficientSAM-S: There is no file nowhere.safetensors."]
    (one,) = measured
    assert one.model == "EfficientSAM-Ti"
    assert list(one.rows) == (["measured", "measured with AMR"] if number == 2 else ["measured"])
    evaluation, ap = one.outcome.evaluation, one.outcome.ap
    assert evaluation is not None and ap is not None
    assert one.rows["measured"] == (
        100 * evaluation.summary()["miou"],
        100 * ap.first.ap,  # type: ignore[operator]
        None,
        None,
        100 * ap.first.ap_small,  # type: ignore[operator]
    )
    table = printed_paper_table(paper, measured)
    assert table.row_count == len(paper.published) + len(one.rows) + 1
    document = paper_table_document(paper, measured)
    assert document["measured"][0]["rows"]["measured"]["mIoU"] == one.rows["measured"][0]
    json.dumps(document)


def test_a_detectors_boxes_can_stand_for_the_prompts(data: Path, weights: Path) -> None:
    (one,) = measure_paper_table(
        own(weights), data / "coco.json", data / "images", refinesam.load, detections=str(data / "boxes.json")
    )
    assert one.outcome.ap is not None and one.outcome.ap.prompts == "boxes.json"


def test_nothing_to_run_names_everything(data: Path, weights: Path, tmp_path: Path) -> None:
    nothing = replace(own(weights), weights={"EfficientSAM-S": "nowhere.safetensors"})
    with pytest.raises(DatasetError, match=r"EfficientSAM-S: There is no file nowhere"):
        measure_paper_table(nothing, data / "coco.json", data / "images", refinesam.load)
    with pytest.raises(DatasetError, match=r"nowhere\.safetensors.*instances_val2017\.json"):
        measure_paper_table(own(weights), Path("instances_val2017.json"), Path("val2017"), refinesam.load)
    with pytest.raises(DatasetError, match="val2017"):
        measure_paper_table(own(weights), data / "coco.json", tmp_path / "none", refinesam.load)


def test_the_command_measures_or_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFINESAM_CACHE", str(tmp_path / "cache"))
    assert run(monkeypatch, 1, *given(data), command="paper-table") == 1
    message = " ".join(capsys.readouterr().err.split())
    for words in ("refinesam weights fetch efficientsam_ti", "refinesam weights fetch efficientsam_s"):
        assert words in message
    monkeypatch.setattr(paper_tables, "PAPER_TABLES", {2: own(weights)})
    out = {kind: tmp_path / f"table.{kind}" for kind in ("json", "html")}
    files = [part for kind, path in out.items() for part in (f"--{kind}", path)]
    assert run(monkeypatch, 2, *given(data), *files, command="paper-table") == 0
    printed = capsys.readouterr()
    assert "measured with AMR" in " ".join(printed.out.split()) and "75.5" in printed.out
    assert "Left out: EfficientSAM-S" in printed.err
    assert json.loads(out["json"].read_text())["measured"][0]["model"] == "EfficientSAM-Ti"
    assert "EfficientSAM-Ti" in Page(out["html"].read_text()).text


@pytest.fixture
def formula_mobile_sam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """MobileSAM with weights by formula, which answers at a small input size."""
    state = _uninitialised_model(CONFIGS["mobile_sam"]).state_dict()
    torch.save(formula.weights(state), tmp_path / "formula.pt")
    monkeypatch.setitem(CONFIGS, "mobile_sam", replace(CONFIGS["mobile_sam"], input_size=128))
    return str(tmp_path / "formula.pt")


def test_several_models_stand_side_by_side_and_a_bad_one_costs_none(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    formula_mobile_sam: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REFINESAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    bad, report = tmp_path / "bad.pt", tmp_path / "table.json"
    bad.write_bytes(b"no weights")
    models = f"{bad}, efficientsam_ti, builtin,{formula_mobile_sam}"
    asked = ["--models", models, "--limit", 2, "--json", report]
    assert run(monkeypatch, 2, *given(data), *asked, command="paper-table") == 0
    printed = capsys.readouterr()
    measured = {one["model"]: one["rows"] for one in json.loads(report.read_text())["measured"]}
    assert list(measured) == ["builtin", formula_mobile_sam]
    for rows in measured.values():
        assert list(rows) == ["measured", "measured with AMR"] and all(row["mIoU"] >= 0 for row in rows.values())
    left_out = " ".join(printed.err.split())
    assert "bad.pt is not a weights file" in left_out
    assert "Left out: EfficientSAM-Ti: efficientsam_ti is missing: run `refinesam weights fetch" in left_out
    table = printed.out
    assert table.index("EfficientSAM-Ti") < table.index("builtin") < table.index("formula.pt")
    assert "75.5" in table and "EfficientSAM-S" not in table


def test_models_that_all_fail_are_all_named(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"no weights")
    models = f"{tmp_path / 'a.pt'},{tmp_path / 'b.pt'}"
    assert run(monkeypatch, 1, *given(data), "--models", models, command="paper-table") == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "Nothing of the table could be measured" in message and "a.pt is not" in message and "b.pt is not" in message


def test_the_weights_that_the_tables_need_are_registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFINESAM_CACHE", str(tmp_path))
    missing = missing_weights(PAPER_TABLES[1])
    assert list(missing) == ["EfficientSAM-Ti", "EfficientSAM-S"]
    assert all("is missing: run `refinesam weights fetch" in what for what in missing.values())


# ---------------------------------------------------------------- plots


def numbers(svg: str, tag: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<{tag}[^>]* {name}="([^"]+)"', svg)]


def test_a_histogram_has_a_bar_for_each_bin_in_proportion() -> None:
    svg = histogram([0.1, 0.1, 0.9, 7], "IoU", "IoU", limits=(0, 1), bins=4)
    heights = numbers(svg, "rect", "height")
    assert heights == pytest.approx([192, 0, 0, 192]), "two in the first, and two with the one beyond the end"
    changes = histogram([-0.5, 0.5], "change", "change", limits=(-1, 1), bins=2)
    assert changes.index("--worse") < changes.index("--better")
    assert histogram([], "nothing", "", limits=(0, 1)).count("<rect") == 40


def test_bars_stand_for_values_and_gaps_for_none() -> None:
    svg = bar_chart({"small": {"a": 0.5, "b": None}, "large": {"a": 1.0, "b": 0.25}}, "by size", "mIoU")
    bars = re.findall(r'height="([\d.]+)" fill="(var\(--\w+\))"><title>', svg)
    assert [(float(height), color) for height, color in bars] == [
        (96, "var(--first)"),
        (192, "var(--first)"),
        (48, "var(--refined)"),
    ]
    assert "nan" not in bar_chart({}, "nothing", "")


def test_dots_of_a_reliability_diagram_lie_at_the_means() -> None:
    svg = reliability_diagram({"x": calibration([0.25, 1.0], [0.5, 0.0])}, "p")
    assert numbers(svg, "circle", "cx") == pytest.approx([48 + 0.25 * 360, 48 + 360])
    assert numbers(svg, "circle", "cy") == pytest.approx([220 - 96, 220])


def test_a_curve_leaves_out_what_is_missing_and_text_is_escaped() -> None:
    svg = curve([0.5, None, 1.0], "a < b & c", "clicks")
    assert re.search(r'points="48\.0,124\.0 408\.0,28\.0"', svg)
    assert "a &lt; b &amp; c" in svg


@pytest.mark.parametrize(
    ("name", "rule"),
    [("full", "closer_look"), ("fast", "closer_look"), ("paper", "paper_equation"), ("paper-prose", "paper_prose")],
)
def test_the_refinement_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, data: Path, weights: Path, tmp_path: Path, name: str, rule: str
) -> None:
    report = tmp_path / "report.json"
    asked = ["--refine", "--amr", name, "--limit", 1, "--weights", weights, "--json", report]
    assert run(monkeypatch, *given(data), *asked) == 0
    refine = json.loads(report.read_text())["summary"]["refine"]
    assert refine["rule"] == rule and (name != "fast" or refine["crop_factor"] is None)
