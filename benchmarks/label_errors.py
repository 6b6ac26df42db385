"""How well doubtful ground truth is found: labels of real data, some of them damaged on purpose, ranked by doubt.

    python benchmarks/label_errors.py --data DATA --json benchmarks/results/label_errors.json

DATA holds one folder a source, SOURCE/images and SOURCE/instances_val.json. Of the labels, a share is damaged, in equal
parts: shifted by half of their size, swapped with one of another image, missing, merged with the nearest. Two runs, one
of boxes of the damaged labels and one of everything, are ranked by `rank_labels`; by 1 - IoU alone, for what sureness
adds; and by FiftyOne's mistakenness of the same masks, whose flags of spurious and missing objects come first, since it
gives those no number. Precision at 50 is the share of the first 50 that are damaged; of a mask without a label, that it
lies on an object whose label was taken away. All labels have the same class, for the model knows none.

Needs refinesam[fiftyone] and a MongoDB as FiftyOne finds it. The dataset is deleted afterwards, unless --keep names it.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import numpy as np
import pandas as pd

from fiftyone_report import load
from refinesam import mask_iou
from refinesam.hosts import write_json
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.label_ranking import rank_labels
from refinesam_fiftyone.labels import detection_from_mask, mask_from_detection
from refinesam_fiftyone.schema import Fields, Settings

SOURCES = ("dsb2018", "coco_mini_cc", "coco_mini_nc")
KINDS = ("shifted", "swapped", "missing", "merged")
TRUTH = "ground_truth"
FIRST = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=list(SOURCES))
    parser.add_argument("--images", type=int, default=10, help="of each source, the first of its validation images")
    parser.add_argument("--share", type=float, default=0.15, help="of the labels, damaged")
    parser.add_argument("--amr", default="fast", choices=["fast", "full", "paper"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="keep the dataset under this name")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    dataset = load(arguments.data, arguments.sources, arguments.images, arguments.keep or f"errors-{uuid.uuid4().hex}")
    damage = Damage(dataset, arguments.share, np.random.default_rng(arguments.seed))
    asked = {name: value for name, value in vars(arguments).items() if name not in ("data", "json", "keep")}
    found: dict[str, Any] = asked | {
        "labels": dataset.count(f"{TRUTH}.detections"),
        "images": len(dataset),
        "damaged": dict(Counter(damage.kind_of.values())) | {"missing": damage.missing},
        "runs": {},
    }
    for prompts in ("everything", "boxes"):
        field = TRUTH if prompts == "boxes" else None
        start = time.perf_counter()
        compare(dataset, Settings(prompts, field, TRUTH, amr=arguments.amr), run_key=prompts)
        seconds = round(time.perf_counter() - start, 1)
        found["runs"][prompts] = {"seconds": seconds} | measured(dataset, Fields(prompts), damage)
        print(prompts, pd.DataFrame(found["runs"][prompts]["rankings"]).T.round(2).to_string(), sep="\n")
    if arguments.json is not None:
        write_json(arguments.json, found, indent=1)
    if not arguments.keep:
        dataset.delete()


class Damage:
    """Labels of a dataset, damaged.

    Attributes:
        kind_of: id of a damaged label -> what was done to it.
        taken: sample id -> masks of objects that have no label of their own any more.
        missing: how many labels were taken away.
    """

    def __init__(self, dataset: fo.Dataset, share: float, rng: np.random.Generator) -> None:
        self.kind_of: dict[str, str] = {}
        self.taken: dict[str, list[np.ndarray]] = {sample.id: [] for sample in dataset}
        self.missing = 0
        samples = list(dataset)
        masks = {sample.id: self._masks(sample) for sample in samples}
        pool = [mask for own in masks.values() for mask in own]
        for sample in samples:
            own = masks[sample.id]
            chosen = rng.permutation(len(own))[: rng.binomial(len(own), share)]
            kinds = {int(i): KINDS[int(rng.integers(len(KINDS)))] for i in chosen}
            sample[TRUTH] = fo.Detections(detections=self._damaged(sample.id, own, kinds, pool, rng))
            sample.save()

    def _masks(self, sample: fo.Sample) -> list[np.ndarray]:
        size = sample.metadata.height, sample.metadata.width
        labels = sample[TRUTH].detections if sample[TRUTH] is not None else []
        masks = [mask_from_detection(label, size) for label in labels if not label.get_attribute_value("iscrowd", 0)]
        return [mask for mask in masks if mask is not None and mask.sum() >= 40]

    def _damaged(
        self,
        sample_id: str,
        masks: list[np.ndarray],
        kinds: dict[int, str],
        pool: list[np.ndarray],
        rng: np.random.Generator,
    ) -> list[fo.Detection]:
        labels, gone = [], set[int]()
        centres = np.array([np.argwhere(mask).mean(0) for mask in masks])
        for index, mask in enumerate(masks):
            kind = kinds.get(index)
            if index in gone:
                continue
            new = mask
            if kind == "missing":
                self.taken[sample_id].append(mask)
                self.missing += 1
                continue
            if kind == "shifted":
                new = shifted(mask, rng)
            elif kind == "swapped":
                new = stretched(pool[int(rng.integers(len(pool)))], mask.shape)
            elif kind == "merged":
                order = np.argsort(np.linalg.norm(centres - centres[index], axis=1))
                free = [int(i) for i in order if i > index and int(i) not in kinds]
                if not free:
                    kind = None
                else:
                    new = mask | masks[free[0]]
                    gone.add(free[0])
            if kind in ("shifted", "swapped") and mask_iou(new, mask) < 0.5:
                self.taken[sample_id].append(mask)
            label = detection_from_mask(new, label="object")
            if kind is not None:
                self.kind_of[label.id] = kind
            labels.append(label)
        return labels


def shifted(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move a mask by half of its height and width, in one of four directions in which something of it stays."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    down, right = (len(rows) + 1) // 2 * rng.choice([-1, 1]), (len(columns) + 1) // 2 * rng.choice([-1, 1])
    down = -down if not 0 <= rows.mean() + down < mask.shape[0] else down
    right = -right if not 0 <= columns.mean() + right < mask.shape[1] else right
    there = np.argwhere(mask) + (down, right)
    there = there[((there >= 0) & (there < mask.shape)).all(1)]
    moved = np.zeros_like(mask)
    moved[there[:, 0], there[:, 1]] = True
    return moved


def stretched(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of another image at the same relative place and size."""
    rows = (np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1]
    return mask[rows.astype(int)][:, columns.astype(int)]


def measured(dataset: fo.Dataset, run: Fields, damage: Damage) -> dict[str, Any]:
    """Precision at 50 of each ranking, over labels alone and over labels and masks without one."""
    dataset.reload()
    rows = rank_labels(dataset, run_key=run.key)
    there = found_again(dataset, run, damage)
    rows["right"] = [row.id in (damage.kind_of if row.kind == "label" else there) for row in rows.itertuples()]
    labels = rows[rows["kind"] == "label"]
    unlabelled = rows[rows["kind"] == "unlabelled"]
    orders = {
        "doubt": rows.assign(score=rows["doubt"]),
        "doubt, labels alone": labels.assign(score=labels["doubt"]),
        "1 - IoU, labels alone": labels.assign(score=1 - labels["iou"]),
    }
    if len(unlabelled):
        orders["doubt, unlabelled alone"] = unlabelled.assign(score=unlabelled["doubt"])
    orders |= mistakenness(dataset, run, rows)
    found = {name: summed_up(rows) for name, rows in orders.items()}
    kinds = [
        damage.kind_of.get(i, "right" if kind == "label" else "unlabelled") for i, kind in rows[["id", "kind"]].values
    ]
    first = Counter(kinds[:FIRST])
    sources = rows["sample_id"].map(dict(zip(*dataset.values(["id", "tags"]), strict=True))).str[0]
    by_source = {
        name: {key: summed_up(order[sources[order.index] == name]) for key, order in orders.items() if "alone" in key}
        for name in sorted(sources.unique())
    }
    return {
        "rankings": found,
        "by_source": by_source,
        "first_50_by_doubt": dict(first),
        "damaged_share": float(labels["right"].mean()),
    }


def summed_up(rows: pd.DataFrame) -> dict[str, Any]:
    """Precision at 50, and among the first as many as there are right ones: 1 for a ranking that knows them all."""
    right = int(rows["right"].sum())
    return {
        "precision_at_50": precision_at(rows, FIRST) if len(rows) else None,
        "r_precision": precision_at(rows, right) if right else None,
        "right": right,
        "of": len(rows),
    }


def found_again(dataset: fo.Dataset, run: Fields, damage: Damage) -> set[str]:
    """Ids of the refined masks that lie on an object whose label was taken away."""
    found = set()
    for sample in dataset.select_fields(run.amr):
        size = sample.metadata.height, sample.metadata.width
        taken = damage.taken[sample.id]
        for label in sample[run.amr].detections if taken else ():
            mask = mask_from_detection(label, size)
            if any(mask_iou(mask, one) >= 0.5 for one in taken):
                found.add(label.id)
    return found


def mistakenness(dataset: fo.Dataset, run: Fields, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """FiftyOne's, of the refined masks: they have the predicted IoU as their confidence."""
    key = f"{run.key}_mistakenness"
    fob.compute_mistakenness(dataset, run.amr, TRUTH, key, f"{key}_missing", f"{key}_spurious", progress=False)
    scores = {}
    for sample in dataset:
        for label in sample[TRUTH].detections:
            spurious = label.get_attribute_value(f"{key}_spurious", False)
            scores[label.id] = 2.0 if spurious else label.get_attribute_value(f"{key}_loc", 0.0)
        for label in sample[run.amr].detections:
            if label.get_attribute_value(f"{key}_missing", False):
                scores[label.id] = 2.0
    scored = rows.assign(score=rows["id"].map(scores))
    scored = scored[scored["score"].notna()]
    labels = scored[scored["kind"] == "label"]
    found = {"mistakenness": scored, "mistakenness, labels alone": labels}
    return found | {"mistakenness of location alone": labels[labels["score"] <= 1]}


def precision_at(rows: pd.DataFrame, count: int) -> float:
    """Share of the first that are right; of those that tie for the last places, as many as may be expected."""
    rows = rows.sort_values("score", ascending=False)
    count = min(count, len(rows))
    last = rows["score"].iloc[count - 1]
    above, ties = rows[rows["score"] > last], rows[rows["score"] == last]
    return float((above["right"].sum() + (count - len(above)) * ties["right"].mean()) / count)


if __name__ == "__main__":
    main()
