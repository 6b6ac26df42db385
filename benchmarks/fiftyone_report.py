"""The report that a curator reads in FiftyOne, on several sources at once: where masks fail, and what AMR did about it.

    python benchmarks/fiftyone_report.py --data DATA --images 10

DATA holds one folder a source, SOURCE/images and SOURCE/instances_val.json. Needs refinesam[fiftyone] and a MongoDB as
FiftyOne finds it. The dataset stays, under --name, to be looked at in the App; called again, the script goes on.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fiftyone as fo
import pandas as pd
from fiftyone.utils.coco import COCODetectionDatasetImporter

from refinesam.hosts import write_json
from refinesam_fiftyone.coco import coco_ap
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.ranking import rank, ranking_quality
from refinesam_fiftyone.report import calibration, calibration_error, summarise
from refinesam_fiftyone.rows import read_rows
from refinesam_fiftyone.schema import Settings
from refinesam_fiftyone.views import save_views
from sources import FIRST_TWELVE

PROTOCOLS = {"random_2": "random-2", "box": "boxes"}


def main() -> None:
    arguments = parsed()
    if arguments.anew and fo.dataset_exists(arguments.name):
        fo.delete_dataset(arguments.name)
    dataset = load(arguments.data, arguments.sources, arguments.images, arguments.name)
    found: dict[str, Any] = {"images": len(dataset), "objects": dataset.count("ground_truth.detections"), "runs": {}}
    for protocol, prompts in PROTOCOLS.items():
        for amr in arguments.amr:
            key = f"{protocol}_{amr}"
            print(f"\n{key}")
            found["runs"][key] = run(dataset, key, prompts, amr)
    if arguments.json is not None:
        write_json(arguments.json, found, indent=1)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=list(FIRST_TWELVE))
    parser.add_argument("--images", type=int, default=10, help="of each source, the first of its validation images")
    parser.add_argument("--amr", nargs="+", default=["fast", "paper"], choices=["fast", "full", "paper"])
    parser.add_argument("--name", default="refinesam-report")
    parser.add_argument("--anew", action="store_true", help="delete the dataset of that name first")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def load(data: Path, sources: list[str], images: int, name: str) -> fo.Dataset:
    """Return the dataset, made if it is not there; samples are tagged with their source."""
    if fo.dataset_exists(name):
        return fo.load_dataset(name)
    dataset = fo.Dataset(name, persistent=True)
    for source in sources:
        importer = COCODetectionDatasetImporter(
            data_path=str(data / source / "images"),
            labels_path=str(data / source / "instances_val.json"),
            label_types="segmentations",
            max_samples=images,
            shuffle=False,
        )
        dataset.add_importer(importer, label_field="ground_truth", tags=source)
    dataset.compute_metadata()
    return dataset


def run(dataset: fo.Dataset, key: str, prompts: str, amr: str) -> dict[str, Any]:
    """Compare, evaluate, and return what the report says."""
    field = "ground_truth" if prompts == "boxes" else None
    settings = Settings(prompts, prompt_field=field, truth_field="ground_truth", amr=amr)
    start = time.perf_counter()
    done = compare(dataset, settings, run_key=key)
    seconds = time.perf_counter() - start
    evaluate(dataset, run_key=key)
    save_views(dataset, run_key=key)
    rank(dataset, run_key=key)
    rows = read_rows(dataset, key)
    source_of = dict(zip(*dataset.values(["id", "tags"]), strict=True))
    rows["label"] = [next(tag for tag in source_of[sample] if ":" not in tag) for sample in rows["sample_id"]]
    tables = {"all": summarise(rows), "source": summarise(rows, by="label")}
    tables |= {by: summarise(rows, by=by) for by in ("size", "kappa", "compactness")}
    for table in tables.values():
        print(table.round(3).to_string())
    ap = coco_ap(dataset, key, class_agnostic=True)
    print(ap.round(3).to_string())
    quality = ranking_quality(rows)
    print("AUROC", {name: one.auroc and round(one.auroc, 3) for name, one in quality.items()})
    return {
        "comparison": {"encoded": done.encoded, "prompts": done.prompts, "failures": dict(done.failures)},
        # Of a run that was made before there is no time to tell.
        "seconds": None if done.skipped else round(seconds, 1),
        "tables": {name: plain(table) for name, table in tables.items()},
        "coco_ap_class_agnostic": plain(ap),
        "calibration_error": calibration_error(calibration(rows)),
        "ranking": {name: asdict(one) for name, one in quality.items()},
    }


def plain(table: pd.DataFrame) -> dict[str, Any]:
    """A table as JSON has it, without NaN."""
    return {
        str(index): {name: None if pd.isna(value) else value for name, value in row.items()}
        for index, row in table.astype(object).to_dict("index").items()
    }


if __name__ == "__main__":
    main()
