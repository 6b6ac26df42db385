"""The command line as a user types it, in this process, on a small model with random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refinesam.cli import main
from refinesam.images import read_image, write_png
from refinesam.masks import coco_document, decode_rle


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    write_png(tmp_path / "photo.png", cv2.GaussianBlur(image, (0, 0), 5))
    return tmp_path / "photo.png"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["refinesam", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_segment_writes_overlay_and_coco(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay, coco = tmp_path / "new" / "overlay.png", tmp_path / "new" / "masks.json"
    options = ["--weights", weights, "--overlay", overlay, "--coco", coco]
    assert run(monkeypatch, "segment", photo, "--point", "40,30", "--negative", "5,5", "--refine", *options) == 0
    assert "predicted IoU" in capsys.readouterr().out
    document = json.loads(coco.read_text())
    assert document["images"] == [{"id": 1, "file_name": "photo.png", "height": 60, "width": 80}]
    mask = decode_rle(document["annotations"][0]["segmentation"])
    assert mask.shape == (60, 80)
    assert mask.sum() == document["annotations"][0]["area"]
    assert read_image(overlay).shape[1] > 2 * 80


def test_segment_agrees_with_the_api(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path, weights: Path
) -> None:
    import refinesam

    coco = tmp_path / "masks.json"
    assert run(monkeypatch, "segment", photo, "--box", "10,10,50,40", "--weights", weights, "--coco", coco) == 0
    expected = refinesam.load(weights).encode(read_image(photo)).predict(refinesam.Prompt(box=[10, 10, 50, 40])).mask
    found = decode_rle(json.loads(coco.read_text())["annotations"][0]["segmentation"])
    assert (found == expected).all()


def test_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path, weights: Path) -> None:
    coco, overlay = tmp_path / "all.json", tmp_path / "all.png"
    thresholds = ["--iou-threshold", "0", "--stability-threshold", "0", "--points-per-side", "3"]
    options = ["--weights", weights, "--coco", coco, "--overlay", overlay, *thresholds]
    assert run(monkeypatch, "everything", photo, *options) == 0
    annotations = json.loads(coco.read_text())["annotations"]
    scores = [annotation["score"] for annotation in annotations]
    assert annotations
    assert scores == sorted(scores, reverse=True)
    assert read_image(overlay).shape == (60, 80, 3)


def test_evaluate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:60] = True
    annotations, report = tmp_path / "instances.json", tmp_path / "report.json"
    annotations.write_text(json.dumps(coco_document({photo.name: ((60, 80), [(mask, None)])})))
    options = ["--protocol", "random-2", "--refine", "--weights", weights, "--json", report]
    assert run(monkeypatch, "evaluate", "--annotations", annotations, "--images", photo.parent, *options) == 0
    assert "with AMR" in capsys.readouterr().out
    summary = json.loads(report.read_text())["summary"]
    assert summary["objects"] == 1
    assert 0 <= summary["miou"] <= 1
    assert summary["change"]["mean"] == pytest.approx(summary["miou_refined"] - summary["miou"])


def test_weights_list_and_verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "weights", "list") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("builtin", "efficientsam_ti", "efficientsam_s", "sam_vit_h"))
    rows = {line.split()[1]: line for line in listed.splitlines() if line.startswith("│ ")}
    for words in ("yes", " MB ", "Apache-2.0", "micrographs"):
        assert words in rows["builtin"]
    for words in ("no", "about 375 MB", "CC-BY-4.0", "cells and nuclei in light microscopy"):
        assert words in rows["vit_b_lm"]
    assert "not stated" in rows["vit_b_histopathology"] and "2565 MB" in rows["sam_vit_h"]
    assert run(monkeypatch, "weights", "verify", "builtin") == 0


BAD_CALLS = {
    "no prompt": (["segment", "PHOTO"], "PromptError", "at least one point"),
    "words as a point": (["segment", "PHOTO", "--point", "left"], "PromptError", "2 numbers"),
    "three numbers as a point": (["segment", "PHOTO", "--point", "1,2,3"], "PromptError", "2 numbers"),
    "two numbers as a box": (["segment", "PHOTO", "--box", "1,2"], "PromptError", "4 numbers"),
    "two boxes": (["segment", "PHOTO", "--box", "1,2,3,4", "--box", "1,2,3,4"], "PromptError", "one --box"),
    "point outside": (["segment", "PHOTO", "--point", "80,10"], "PromptError", "outside the image"),
    "negative alone": (["segment", "PHOTO", "--negative", "8,8", "--weights", "WEIGHTS"], "PromptError", "positive"),
    "box without area": (["segment", "PHOTO", "--box", "5,5,5,9"], "PromptError", "no area"),
    "NaN": (["segment", "PHOTO", "--point", "nan,1"], "PromptError", "finite"),
    "no such image": (["segment", "nowhere.png", "--point", "1,1"], "ImageError", "nowhere.png"),
    "not an image": (["segment", "TEXT", "--point", "1,1"], "ImageError", "text.png"),
    "unknown policy": (["segment", "PHOTO", "--point", "1,1", "--intensity", "bright"], "ConfigError", "percentile"),
    "page of a one-page file": (["segment", "PHOTO", "--point", "1,1", "--page", "3"], "ImageError", "page"),
    "unknown weights": (["segment", "PHOTO", "--point", "1,1", "--weights", "best"], "WeightsError", "builtin"),
    "image as weights": (["segment", "PHOTO", "--point", "1,1", "--weights", "PHOTO"], "WeightsError", "photo.png"),
    "unknown device": (
        ["segment", "PHOTO", "--point", "1,1", "--weights", "WEIGHTS", "--device", "abacus"],
        "ConfigError",
        "'cpu'",
    ),
    "threshold beyond 1": (
        ["everything", "PHOTO", "--weights", "WEIGHTS", "--iou-threshold", "2"],
        "ConfigError",
        "must lie in",
    ),
    "no grid": (["everything", "PHOTO", "--weights", "WEIGHTS", "--points-per-side", "0"], "ConfigError", "at least 1"),
    "no annotations": (
        ["evaluate", "--annotations", "none.json", "--images", "FOLDER"],
        "DatasetError",
        "COCO JSON",
    ),
    "annotations are no JSON": (["evaluate", "--annotations", "TEXT", "--images", "FOLDER"], "DatasetError", "JSON"),
    "fetch of an unknown name": (["weights", "fetch", "best"], "WeightsError", "builtin"),
    # Weights that are unknown show that outputs are looked at before anything else is done.
    "overlay over the image": (
        ["segment", "PHOTO", "--point", "1,1", "--overlay", "PHOTO", "--weights", "best"],
        "OutputError",
        "read here",
    ),
    "everything over the image": (["everything", "PHOTO", "--overlay", "PHOTO"], "OutputError", "read here"),
    "overlay as JPEG": (
        ["segment", "PHOTO", "--point", "1,1", "--overlay", "out.jpg", "--weights", "best"],
        "OutputError",
        "name it out.png",
    ),
    "COCO in a file": (
        ["everything", "PHOTO", "--coco", "IN_FILE", "--weights", "best"],
        "OutputError",
        "Not a directory",
    ),
    "report over the annotations": (
        ["evaluate", "--annotations", "TEXT", "--images", "FOLDER", "--html", "TEXT"],
        "OutputError",
        "HTML",
    ),
    "two reports in one": (
        ["evaluate", "--annotations", "TEXT", "--images", "FOLDER", "--json", "a.json", "--parquet", "a.json"],
        "OutputError",
        "PARQUET",
    ),
    "demonstration in a file": (["demo", "--output", "PHOTO", "--weights", "best"], "OutputError", "masks.json"),
    "export over files": (["export", "best", "--output", "FOLDER"], "OutputError", "holds no export"),
    "export of an unknown model": (["export", "best", "--output", "exported"], "WeightsError", "builtin"),
    "config that is missing": (
        ["train", "finetune", "none.toml", "--data", "FOLDER", "--output", "FOLDER"],
        "ConfigError",
        "TOML",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_end_with_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    arguments, error, words = BAD_CALLS[name]
    (tmp_path / "text.png").write_text("not an image")
    places = {"PHOTO": photo, "WEIGHTS": weights, "TEXT": tmp_path / "text.png", "FOLDER": tmp_path}
    places["IN_FILE"] = photo / "out.json"
    before = sorted(tmp_path.rglob("*"))
    assert run(monkeypatch, *(places.get(a, a) for a in arguments)) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert error in message
    assert words in message
    assert "Traceback" not in message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_result_survives_the_other_ones_full_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refinesam.images.write_png", full)
    overlay, coco = tmp_path / "a.png", tmp_path / "a.json"
    options = ["--weights", weights, "--overlay", overlay, "--coco", coco]
    assert run(monkeypatch, "segment", photo, "--point", "40,30", *options) == 1
    told = capsys.readouterr()
    assert "predicted IoU" in told.out
    assert "a.png cannot be written (No space left on device)" in " ".join(told.err.split())
    assert json.loads(coco.read_text())["annotations"]


def test_any_error_of_the_system_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", "/media/disk/photo.png")

    monkeypatch.setattr("refinesam.images.read_image", broken)
    assert run(monkeypatch, "segment", photo, "--point", "1,1") == 1
    message = capsys.readouterr().err
    assert "Input/output error" in message and "/media/disk/photo.png" in message and "Traceback" not in message


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    program = "import sys; from refinesam.cli import main; sys.argv = ['refinesam', 'weights', 'list']; main()"
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


def test_version_and_short_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"refinesam {version('refinesam')}\n"
    for command in ([], ["segment"], ["weights"], ["weights", "list"], ["evaluate"], ["train", "mae"]):
        assert run(monkeypatch, *command, "-h") == 0
        short = capsys.readouterr().out
        assert run(monkeypatch, *command, "--help") == 0
        assert capsys.readouterr().out == short and "Usage" in short


def printed_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert run(monkeypatch, *arguments, "--format", "json") == 0
    return json.loads(capsys.readouterr().out)


def test_what_programs_read_of_masks(
    monkeypatch: pytest.MonkeyPatch, photo: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["segment", photo, "--point", "40,30", "--refine", "--weights", weights]
    found = printed_json(monkeypatch, capsys, *asked)
    (one,) = found.pop("predictions")
    assert found == {"image": "photo.png", "height": 60, "width": 80}
    mask = decode_rle(one["segmentation"])
    assert mask.shape == (60, 80) and mask.sum() == one["area"]
    assert 0 <= one["predicted_iou"] <= 1 and one["negatives"] == "none"
    assert one["refinement"]["kept"] in ("first", "refined")
    thresholds = ["--iou-threshold", "0", "--stability-threshold", "0", "--points-per-side", "3"]
    everything = printed_json(monkeypatch, capsys, "everything", photo, "--weights", weights, *thresholds)
    assert len(everything["predictions"]) > 1
    assert all(one["refinement"] is None for one in everything["predictions"])


def test_what_programs_read_of_weights_and_evaluations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {one["name"]: one for one in printed_json(monkeypatch, capsys, "weights", "list")}
    assert Path(listed["builtin"]["path"]).is_file() and listed["builtin"]["size"] > 10**6
    assert listed["sam_vit_h"]["url"].startswith("https://")
    assert "doi:10.1038/s41592-024-02580-4" in listed["vit_b_lm"]["citation"] and listed["vit_b_lm"]["about"] > 10**8
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:60] = True
    annotations, report = tmp_path / "instances.json", tmp_path / "report.json"
    annotations.write_text(json.dumps(coco_document({photo.name: ((60, 80), [(mask, None)])})))
    asked = ["--annotations", annotations, "--images", photo.parent, "--weights", weights, "--json", report]
    found = printed_json(monkeypatch, capsys, "evaluate", *asked)
    written = json.loads(report.read_text())
    assert found.keys() == {"summary"} and found["summary"] == written["summary"]


def test_the_list_of_weights_says_what_each_is_for_and_what_to_cite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFINESAM_CACHE", str(tmp_path))
    assert run(monkeypatch, "weights", "list") == 0
    shown = capsys.readouterr().out
    (row,) = (line for line in shown.splitlines() if line.startswith("│ efficientsam_ti "))
    assert [cell.strip() for cell in row.split("│")][2:5] == ["no", "about 41 MB", "Apache-2.0"]
    # A name is what people type: it is never cut off.
    assert "│ vit_b_medical_imaging │" in shown
    words = " ".join(shown.split())
    assert "efficientsam_ti, efficientsam_s: Xiong et al. 2024, EfficientSAM, arXiv:2312.00863." in words


def test_errors_leave_paths_and_addresses_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a folder [bold]" / ("long_name_" * 15 + ".png")
    assert run(monkeypatch, "segment", path, "--point", "1,1") == 1
    assert str(path) in capsys.readouterr().err
    monkeypatch.setenv("REFINESAM_CACHE", str(tmp_path))

    def unreachable(url: str, *_: object) -> None:
        raise OSError(f"no network to {url}")

    monkeypatch.setattr("refinesam.registry.download", unreachable)
    assert run(monkeypatch, "weights", "fetch", "sam_vit_h") == 1
    from refinesam.registry import REGISTRY

    assert str(REGISTRY["sam_vit_h"].url) in capsys.readouterr().err


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A folder of installed adapters: `greet` works, `broken` lacks a dependency, both tell when they are imported."""
    info = tmp_path / "adapters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adapters\nVersion: 1.0\n")
    names = ["greet = greeting_adapter:app", "broken = broken_adapter:app", "segment = broken_adapter:app"]
    (info / "entry_points.txt").write_text("\n".join(["[refinesam.commands]", *names, ""]))
    program = [
        "import sys, typer",
        "print('greeting imported')",
        "app = typer.Typer(add_completion=False)",
        "@app.command()",
        "def hello(name: str) -> None:",
        "    print(f'hello {name}', 'torch' in sys.modules)",
        "@app.command()",
        "def other() -> None:",
        "    raise SystemExit(7)",
    ]
    (tmp_path / "greeting_adapter.py").write_text("\n".join(program))
    (tmp_path / "broken_adapter.py").write_text("print('broken imported')\nimport a_package_nobody_has\n")
    return tmp_path


def run_with(adapters: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(adapters), "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "refinesam.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_help_lists_adapters_without_importing_them(adapters: Path) -> None:
    done = run_with(adapters, "--help")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if len(line.split()) > 2}
    assert "comes with the extra 'greet'" in lines["greet"]
    assert "the extra 'broken'" in lines["broken"]
    assert "imported" not in done.stdout
    # A command of the core cannot be replaced from outside.
    assert "adapter" not in lines["segment"]


def test_an_adapter_is_loaded_when_it_is_called(adapters: Path) -> None:
    done = run_with(adapters, "greet", "hello", "Ada")
    assert (done.returncode, done.stdout.split()) == (0, ["greeting", "imported", "hello", "Ada", "False"]), done.stderr
    assert run_with(adapters, "greet", "other").returncode == 7
    listed = run_with(adapters, "greet", "--help")
    assert listed.returncode == 0
    assert "hello" in listed.stdout


def test_an_adapter_without_its_dependencies_names_the_extra(adapters: Path) -> None:
    done = run_with(adapters, "broken", "hello")
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert "MissingExtraError: a_package_nobody_has" in message
    assert 'pip install "refinesam[broken]"' in message
    assert "Traceback" not in message
    unknown = run_with(adapters, "nonesuch")
    assert unknown.returncode == 2
    assert "No such command" in unknown.stderr
