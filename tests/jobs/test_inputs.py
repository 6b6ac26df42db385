"""Images and prompts of a job, in every form that they come in."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from file_server import FileServer
from planted_job import coco_boxes, write_images
from refinesam.errors import DatasetError, ImageError
from refinesam.jobs.inputs import Reading, Source, find_sources, read_source
from refinesam.jobs.prompts import ObjectPrompt, match_images, read_prompts


def names_of(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


def test_a_folder_at_any_depth_a_pattern_and_one_file(dataset: Path) -> None:
    (dataset / "images" / "notes.md").write_text("no image")
    folder = find_sources(str(dataset / "images"))
    assert names_of(folder) == ["0001.png", "0002.png", "0004.png", "0005.png"] + [
        f"deep/{number}.png" for number in ("0000", "0003", "0006")
    ]
    assert names_of(find_sources(str(dataset / "images" / "*" / "*3.png"))) == ["deep/0003.png"]
    assert find_sources(str(dataset / "images" / "**" / "*.png")) == folder
    assert names_of(find_sources(str(dataset / "images" / "0001.png"))) == ["0001.png"]
    assert read_source(folder[0], Reading()).shape == (40, 56, 3)


def test_lists_and_tables_name_images_from_their_own_folder_on(dataset: Path) -> None:
    (dataset / "images.txt").write_text("# chosen\nimages/0002.png\n\nimages/0001.png\n")
    listed = find_sources(str(dataset / "images.txt"))
    assert names_of(listed) == ["images/0002.png", "images/0001.png"]
    assert read_source(listed[0], Reading()).shape == (40, 56, 3)
    table = pyarrow.table({"where": ["images/0001.png", "images/deep/0000.png"], "n": [1, 2]})
    pyarrow.parquet.write_table(table, dataset / "images.parquet")
    assert names_of(find_sources(str(dataset / "images.parquet"), "where")) == table["where"].to_pylist()
    with pytest.raises(DatasetError, match=r"columns where, n, and no image.*--column"):
        find_sources(str(dataset / "images.parquet"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("missing", r"There is no .*missing"),
        ("empty", r"empty holds no image\. Give a folder"),
        ("*.nothing", "holds no image"),
        ("twice.txt", r"names 1 images twice, such as a\.png"),
        ("hole.csv", "row 2 names no image"),
    ],
)
def test_images_that_are_none(tmp_path: Path, given: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice.txt").write_text("a.png\na.png\n")
    (tmp_path / "hole.csv").write_text("image,n\na.png,1\n,2\n")
    with pytest.raises(DatasetError, match=words):
        find_sources(str(tmp_path / given))


def test_images_on_a_server(dataset: Path) -> None:
    with FileServer(dataset) as server:
        url = f"{server.url}/images/0001.png"
        (dataset / "urls.txt").write_text(f"{url}\n{server.url}/images/gone.png\n")
        there, gone = find_sources(str(dataset / "urls.txt"))
        expected = read_source(Source("x", str(dataset / "images" / "0001.png")), Reading())
        assert (read_source(there, Reading()) == expected).all()
        with pytest.raises(ImageError, match=r"gone\.png cannot be read"):
            read_source(gone, Reading())
        (dataset / "images" / "0001.png").write_bytes(b"no image")
        with pytest.raises(ImageError, match=r"^http://.*0001\.png: the content is no image"):
            read_source(there, Reading())


def test_a_remote_folder_is_listed(dataset: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    content = (dataset / "images" / "0001.png").read_bytes()
    for name in ("a/1.png", "b/2.png", "b/notes.md"):
        MemoryFileSystem().pipe(f"/bucket/{name}", content)
    sources = find_sources("memory://bucket")
    assert names_of(sources) == ["a/1.png", "b/2.png"]
    assert all(read_source(source, Reading()).shape == (40, 56, 3) for source in sources)
    assert names_of(find_sources("memory://bucket/b/*.png")) == ["2.png"]


def test_coco_annotations_name_classes_and_boxes(dataset: Path) -> None:
    names = names_of(find_sources(str(dataset / "images")))
    prompts = read_prompts(dataset / "boxes.json", names)
    assert sorted(prompts) == sorted(names)
    assert prompts["deep/0003.png"][1] == ObjectPrompt(box=(20, 2, 50, 32), class_id=4, class_name="dog", prompt_id="7")


@pytest.mark.parametrize("image_id", ["of the document", "stem", "number", "file_name"])
def test_a_detectors_results_become_named_and_scored_prompts(tmp_path: Path, image_id: str) -> None:
    names = write_images(tmp_path / "images", 2)
    document = coco_boxes(names)
    result = {"category_id": 4, "bbox": [1, 2, 10, 12], "score": 0.75}
    result |= {
        "of the document": {"image_id": 2},
        "stem": {"image_id": "0001"},
        "number": {"image_id": 1},
        "file_name": {"image_id": 99, "file_name": "0001.png"},
    }[image_id]
    (tmp_path / "results.json").write_text(json.dumps([result]))
    (tmp_path / "document.json").write_text(json.dumps(document))
    given = tmp_path / "document.json" if image_id == "of the document" else None
    prompts = read_prompts(tmp_path / "results.json", names, given)
    name = "dog" if given else "4"
    assert prompts == {"0001.png": [ObjectPrompt(box=(1, 2, 11, 14), class_id=4, class_name=name, score=0.75)]}


def test_keypoints_are_clicks_and_crowds_no_objects(tmp_path: Path) -> None:
    document = coco_boxes(["a.png"])
    document["annotations"][0]["iscrowd"] = 1
    del document["annotations"][1]["bbox"]
    document["annotations"][1]["keypoints"] = [5, 6, 2, 7, 8, 1, 9, 10, 2]
    (tmp_path / "points.json").write_text(json.dumps(document))
    (prompt,) = read_prompts(tmp_path / "points.json", ["a.png"])["a.png"]
    assert (prompt.points, prompt.labels, prompt.box) == (((5, 6), (9, 10)), (1, 1), None)


def test_tables_give_boxes_or_points_of_one_object_together(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1,class,score\na.png,1,2,30,40,cat,0.5\nb.png,1,2,x,40,,\n")
    boxes = read_prompts(tmp_path / "boxes.csv", ["a.png", "b.png"])
    assert boxes["a.png"] == [ObjectPrompt(box=(1, 2, 30, 40), class_name="cat", score=0.5, prompt_id="1")]
    assert boxes["b.png"][0].error == f"{tmp_path / 'boxes.csv'}, row 2: x1 must be a number, got 'x': correct the row."
    columns = {"image": ["a.png"] * 3, "object": ["m", "m", "n"], "x": [1.0, 5.0, 9.0], "y": [2.0, 6.0, 10.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns | {"label": [1, 0, 1]}), tmp_path / "points.parquet")
    first, second = read_prompts(tmp_path / "points.parquet", ["a.png"])["a.png"]
    assert (first.points, first.labels, first.prompt_id) == (((1, 2), (5, 6)), (1, 0), "m")
    assert (second.points, second.prompt_id) == (((9, 10),), "n")


def test_prompts_of_other_images_are_counted_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps(coco_boxes(["a.png", "x/b.png"])))
    with caplog.at_level(logging.WARNING):
        assert list(read_prompts(tmp_path / "boxes.json", ["a.png"])) == ["a.png"]
    assert "2 prompts of" in caplog.text and "x/b.png" in caplog.text
    with pytest.raises(DatasetError, match=r"holds no prompt for any.*names a\.png, x/b\.png; the images are c\.png"):
        read_prompts(tmp_path / "boxes.json", ["c.png"])
    # A name that two images end in means neither.
    with pytest.raises(DatasetError, match="holds no prompt for any"):
        read_prompts(tmp_path / "boxes.json", ["1/a.png", "2/a.png"])


def test_images_are_told_apart_by_as_much_of_the_path_as_it_takes() -> None:
    given, unmatched = match_images(
        ["a/1.png", "s3://bucket/b/1.png", "1.png", "1", "c/2.png"], ["x/a/1.png", "b/1.png"]
    )
    assert given == {"x/a/1.png": "a/1.png", "b/1.png": "s3://bucket/b/1.png"}
    assert unmatched["c/2.png"] == "no image is called so"
    assert unmatched["1.png"] == unmatched["1"] == "2 images are called so, such as x/a/1.png: give more of the path"


def test_two_names_never_mean_one_image() -> None:
    given, unmatched = match_images(["a/1.png", "b/1.png"], ["1.png"])
    assert given == {}
    assert unmatched["a/1.png"] == "1.png may be it, or b/1.png: give more of the path"
    given, unmatched = match_images(["a/1.png", "1.png"], ["1.png"])
    assert (given, list(unmatched)) == ({"1.png": "1.png"}, ["a/1.png"])


def test_a_name_that_fits_better_takes_the_image() -> None:
    given, unmatched = match_images(["b/1.png", "a/1.png"], ["x/a/1.png"])
    assert (given, list(unmatched)) == ({"x/a/1.png": "a/1.png"}, ["b/1.png"])


@pytest.mark.parametrize(
    ("box", "words"),
    [([1, 2, -3, 4], "sizes not negative"), ([1, 2, 3], "four finite numbers"), ("no", r"annotations\[0\]\.bbox")],
)
def test_a_malformed_box_costs_itself_alone(tmp_path: Path, box: object, words: str) -> None:
    document = coco_boxes(["a.png"])
    document["annotations"][0]["bbox"] = box
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    bad, good = read_prompts(tmp_path / "boxes.json", ["a.png"])["a.png"]
    assert bad.error is not None and np.any([w in bad.error for w in (words, words.replace("\\", ""))])
    assert good.error is None and good.box == (20, 2, 50, 32)
