"""Runs that compare nothing: one field of labels that were found by example, or imported.

They are noted apart from comparisons, which alone can be evaluated and ranked; their field is marked as the run's in
the same way, so that deleting takes exactly what they made.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from refinesam import ConfigError

from .files import folder_of
from .record import check_free, declare
from .runs import check_place, config_of
from .sample_result import SampleResult
from .samples import Target
from .schema import Fields, LabelSource
from .storing import store

if TYPE_CHECKING:
    import fiftyone as fo

__all__ = ["LabelRun", "Stored", "check_label_run", "digest_of", "list_label_runs"]

_KIND: Final = "refinesam_labels"


@dataclass(frozen=True)
class Stored:
    """What a call did.

    Attributes:
        samples: how many it was asked for.
        done: how many it stored, those without any label too.
        skipped: how many were done before.
        labels: how many it stored.
        failures: how many labels or samples failed, by kind.
        stopped: it was asked to stop before the end.
        left_out: what could not be used -> why.
    """

    samples: int
    done: int = 0
    skipped: int = 0
    labels: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    stopped: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)


def list_label_runs(dataset: fo.Dataset) -> list[str]:
    """Return the keys of the dataset's runs that hold what was found or imported."""
    return list(dataset.list_runs(kind=_KIND))


def check_label_run(target: Target, run: Fields, source: LabelSource, asked: str | None = None) -> None:
    """Raise ConfigError if a run would write over something that is not its own, or mix answers.

    Args:
        target: the samples that get labels.
        run: names of the fields.
        source: where the labels come from.
        asked: digest of what the labels come from; None if that is not known yet.
    """
    root = target.root
    if run.key in list_label_runs(root):
        check_place(target, run)
        if asked is not None and config_of(root, run).get("asked") != asked:
            raise ConfigError(
                f"The run {run.key!r} holds labels that come from something else, or from other settings: choose "
                "another name for the run, or delete it first."
            )
    elif root.has_run(run.key):
        raise ConfigError(f"The dataset has another run {run.key!r}, of another kind: choose another name.")
    check_free(target, run, run.label_kinds(source))


@dataclass
class LabelRun:
    """One call that fills a run's field, batch by batch.

    Attributes:
        target: the samples that get labels.
        run: names of the fields.
        source: where the labels come from.
        settings: noted with the dataset; "masks_dir", the folder for masks, is among them.
        asked: what the labels of all samples come from.
    """

    target: Target
    run: Fields
    source: LabelSource
    settings: Mapping[str, Any]
    asked: Sequence[object]
    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def folder(self) -> Path | None:
        """For mask files; None keeps masks in the database."""
        masks_dir = self.settings.get("masks_dir")
        return folder_of(self.target.root, self.run, masks_dir) if masks_dir else None

    def begin(self) -> None:
        """Declare the field and note the run.

        Raises:
            ConfigError: the name is taken, or the run is there and its labels come from something else.
        """
        root, asked = self.target.root, digest_of(*self.asked)
        check_label_run(self.target, self.run, self.source, asked)
        declare(self.target, self.run, self.run.label_kinds(self.source))
        if self.run.key not in list_label_runs(root):
            folders = [str(self.folder)] if self.folder else []
            noted = {"record": 1, "key": self.run.key, "frames": self.target.frames, "asked": asked}
            config = root.init_run(
                kind=_KIND, source=self.source, settings=dict(self.settings), folders=folders, **noted
            )
            root.register_run(self.run.key, config)

    def is_done(self, stored: str | None, digest: str) -> bool:
        """Say whether a sample, by the digest that is stored of it, has what it would get; and count it."""
        done = stored == digest
        self.counts["skipped"] += done
        return done

    def store(self, results: Sequence[SampleResult]) -> None:
        """Write results."""
        for result in store(self.target, self.run, results):
            self.counts["done"] += 1
            self.counts["labels"] += len(result.labels)
            self.failures.update(failure.label for failure in result.failures)

    def summary(self, samples: int, *, stopped: bool = False, left_out: Mapping[str, str] | None = None) -> Stored:
        """Return what was done."""
        counts = {name: self.counts[name] for name in ("done", "skipped", "labels")}
        return Stored(samples, **counts, failures=dict(self.failures), stopped=stopped, left_out=left_out or {})


def digest_of(*parts: object) -> str:
    """Return a digest of values by what they look like."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
