"""A run's results out of FiftyOne: tables, COCO documents, tags for those who correct labels, datasets side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import fiftyone as fo
import pandas as pd

from refinesam import ConfigError, MissingExtraError
from refinesam.hosts import replacing

from .coco import CocoExport, export_coco
from .ranking import rank
from .report import summarise
from .rows import read_rows
from .runs import present_truth, read_settings, run_of
from .schema import BUCKETS, Bucket, Fields

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["CocoExport", "Tagged", "compare_datasets", "export_coco", "export_rows", "tag_for_relabelling"]


@dataclass(frozen=True)
class Tagged:
    """What `tag_for_relabelling` tagged.

    Attributes:
        objects: how many were chosen.
        samples: how many samples they are in.
    """

    objects: int
    samples: int


def export_rows(samples: SampleCollection, path: str | Path, *, run_key: str = "refinesam") -> Path:
    """Write the rows of `read_rows` as a table; the file appears whole or not at all.

    Args:
        samples: a dataset or view.
        path: ends in .csv or .parquet.
        run_key: of a run that `compare` made.

    Raises:
        ConfigError: no such run, or another kind of file.
        MissingExtraError: Parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path.name} is no kind of table that is known: end the name in .csv or .parquet.")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "fiftyone")
    rows = read_rows(samples, run_key)
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            rows.to_csv(temporary, index=False)
        else:
            rows.to_parquet(temporary, index=False, engine="pyarrow")
    return path


def tag_for_relabelling(
    samples: SampleCollection,
    *,
    run_key: str = "refinesam",
    worst: int | None = None,
    bucket: Bucket | None = None,
    tag: str = "relabel",
) -> Tagged:
    """Tag objects that somebody should look at, on the mask after AMR, the ground truth label and the sample.

    Args:
        samples: a dataset or view, whose label filters are heeded.
        run_key: of a run that `compare` made.
        worst: that many objects, those with the lowest IoU; of a run without evaluation, the first of `rank`.
        bucket: all objects of a bucket; with `worst` too, the worst of them.
        tag: what to tag with.

    Raises:
        ConfigError: no such run, neither a number nor a bucket, a bad one, or an empty tag.
    """
    _check_choice(worst, bucket, tag)
    target, run, settings = run_of(samples, run_key)
    truth = present_truth(target, settings)
    rows = _worst_first(samples, run_key, bucket)[:worst]
    for name, column in ((run.amr, "amr_id"), (truth, "truth_id")):
        ids = rows[column].dropna().unique().tolist()
        if name is not None and ids:
            target.samples.select_labels(ids=ids, fields=name).tag_labels(tag, label_fields=name)
    sample_ids = rows["sample_id"].unique().tolist()
    if sample_ids:
        target.samples.select(sample_ids).tag_samples(tag)
    return Tagged(len(rows), len(sample_ids))


def _check_choice(worst: object, bucket: object, tag: str) -> None:
    if worst is None and bucket is None:
        raise ConfigError("Say what to tag: the worst objects (how many), those of a bucket, or both.")
    if worst is not None and (isinstance(worst, bool) or not isinstance(worst, int) or worst < 1):
        raise ConfigError(f"worst is {worst!r}; give a whole number of at least 1.")
    if bucket is not None and bucket not in BUCKETS:
        raise ConfigError(f"There is no bucket {bucket!r}; choose one of {', '.join(BUCKETS)}.")
    if not tag.strip():
        raise ConfigError("The tag is empty: give a word to find the labels by.")


def _worst_first(samples: SampleCollection, run_key: str, bucket: Bucket | None) -> pd.DataFrame:
    rows = read_rows(samples, run_key)
    if bucket is None and rows["amr_iou"].isna().all():
        ranked = rank(samples, run_key=run_key)
        return ranked[ranked["amr_id"].isin(rows["amr_id"])]
    chosen = rows["amr_iou"].notna() if bucket is None else rows["bucket"] == bucket
    return rows[chosen].sort_values("amr_iou", kind="stable")


def compare_datasets(names: Sequence[str], run_key: str = "refinesam") -> pd.DataFrame:
    """Return `summarise` of the same run of several datasets, one row a dataset, with what the run was made with.

    Raises:
        ConfigError: a dataset that does not exist, or one that has no such run.
    """
    missing = [name for name in names if not fo.dataset_exists(name)]
    if missing:
        raise ConfigError(f"There is no dataset {', '.join(missing)}; there are {', '.join(fo.list_datasets())}.")
    tables = []
    for name in names:
        dataset = fo.load_dataset(name)
        settings = read_settings(dataset, Fields(run_key))
        table = summarise(read_rows(dataset, run_key)).set_axis([name], axis="index")
        tables.append(table.assign(weights=settings.weights, prompts=settings.prompts, amr=settings.amr))
    return pd.concat(tables).rename_axis("dataset") if tables else pd.DataFrame()
