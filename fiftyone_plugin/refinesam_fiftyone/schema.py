"""Names of everything that a run writes into a dataset, and the settings it was made with.

A run has a key, as FiftyOne's evaluations have. All its sample fields start with that key, so that several runs live
side by side. A name alone proves nothing: what a run made is told by its marks (`record`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import fiftyone as fo

from refinesam import ConfigError

__all__ = [
    "ALL_ROLES",
    "AMR_SETTINGS",
    "BUCKETS",
    "FAILURES",
    "MASK_STORAGES",
    "PROMPT_SOURCES",
    "ROLES",
    "SAMPLE_SCORES",
    "VIEW_DESCRIPTIONS",
    "VIEW_TITLES",
    "Bucket",
    "Fields",
    "LabelSource",
    "Settings",
    "check_whole",
]

PromptSource = Literal["boxes", "keypoints", "random-2", "everything"]
PROMPT_SOURCES: Final[tuple[PromptSource, ...]] = get_args(PromptSource)
MaskStorage = Literal["database", "files"]
MASK_STORAGES: Final[tuple[MaskStorage, ...]] = get_args(MaskStorage)
AMRSetting = Literal["fast", "full", "paper"]
AMR_SETTINGS: Final[tuple[AMRSetting, ...]] = get_args(AMRSetting)
Bucket = Literal["amr_helped", "amr_hurt", "no_change", "both_failed"]
BUCKETS: Final[tuple[Bucket, ...]] = get_args(Bucket)
# What a prompt or a sample may fail of: the label in the run's failures, and the end of the sample's tag.
Failure = Literal[
    "missing_file",
    "unreadable_image",
    "no_prompts",
    "bad_prompt",
    "no_truth",
    "not_stored",
    "unreadable_mask",
    "outdated",
]
FAILURES: Final[tuple[Failure, ...]] = get_args(Failure)
# The masks of one prompt, each role in a field of its own; candidates only where a run is asked for them. A run that
# compares nothing has "labels" alone: what was found, or imported.
Role = Literal["baseline", "amr", "rejected", "candidates", "labels"]
ALL_ROLES: Final[tuple[Role, ...]] = get_args(Role)
ROLES: Final = ALL_ROLES[:3]

# What a field is declared as: a plain field's class, or that of the labels it holds.
FieldKind: TypeAlias = "type[fo.Field | fo.Label]"

# On every label of a run.
LABEL_ATTRIBUTES: Final[Mapping[str, FieldKind]] = {
    "prompt_id": fo.StringField,
    "kappa": fo.IntField,
    "compactness": fo.FloatField,
    "holes": fo.IntField,
    "strategy": fo.StringField,
    "predicted_iou": fo.FloatField,
    "kept": fo.StringField,
    "reason": fo.StringField,
    "area_px": fo.IntField,
    "empty": fo.BooleanField,
}
# On every candidate.
CANDIDATE_ATTRIBUTES: Final[Mapping[str, FieldKind]] = {
    "prompt_id": fo.StringField,
    "candidate": fo.IntField,
    "chosen": fo.BooleanField,
    "holes": fo.IntField,
    "predicted_iou": fo.FloatField,
    "area_px": fo.IntField,
    "empty": fo.BooleanField,
}
# On every label of a run that compares nothing, by where the labels come from.
LabelSource = Literal["similar", "batch"]
OWN_ATTRIBUTES: Final[Mapping[str, FieldKind]] = {
    "prompt_id": fo.StringField,
    "predicted_iou": fo.FloatField,
    "area_px": fo.IntField,
    "empty": fo.BooleanField,
}
SOURCE_ATTRIBUTES: Final[Mapping[LabelSource, Mapping[str, FieldKind]]] = {
    "similar": {"similarity": fo.FloatField},
    "batch": {"kept": fo.StringField, "source_id": fo.StringField},
}
# On each sample, `{key}_{name}`, by evaluation.
SAMPLE_SCORES: Final[Mapping[str, FieldKind]] = {
    "objects": fo.IntField,
    "missed": fo.IntField,
    "mean_base_iou": fo.FloatField,
    "mean_amr_iou": fo.FloatField,
    "mean_delta": fo.FloatField,
    "worst_delta": fo.FloatField,
    "best_delta": fo.FloatField,
    "helped": fo.IntField,
    "hurt": fo.IntField,
    "failed": fo.IntField,
}

# The saved views of a run, and what they say of themselves.
VIEW_TITLES: Final[Mapping[str, str]] = {
    "amr_helped": "AMR helped",
    "amr_hurt": "AMR hurt",
    "no_change": "no change",
    "both_failed": "both failed",
    "failures": "failures",
    "likely": "likely",
    "labels": "doubtful labels",
}
VIEW_DESCRIPTIONS: Final[Mapping[str, str]] = {
    "amr_helped": "Objects whose mask AMR made better; the sample that it helped most comes first.",
    "amr_hurt": "Objects whose mask AMR made worse; the sample that it hurt most comes first.",
    "no_change": "Objects whose mask AMR left as good as it was.",
    "both_failed": "Objects that neither mask found; the sample that AMR hurt most comes first.",
    "failures": "Samples with a prompt that could not be answered, or a mask that could not be compared.",
    "labels": "Samples with ground truth that the model surely disagrees with, or lacks, the most doubtful first.",
    "likely": "What was found and is more likely an object of the kind than not.",
}

_KEY = re.compile(r"[a-z][a-z0-9_]*")


def check_whole(name: str, value: object, at_least: int) -> None:
    """Raise ConfigError unless a value is a whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least {at_least}.")


@dataclass(frozen=True)
class Fields:
    """The names of one run's sample fields.

    Attributes:
        key: the run's, lower-case letters, digits and underscores.

    Raises:
        ConfigError: a key that FiftyOne could not take as the start of a field's name.
    """

    key: str = "refinesam"

    def __post_init__(self) -> None:
        """Check the key."""
        if not _KEY.fullmatch(str(self.key)):
            raise ConfigError(
                f"The run's key is {self.key!r}: it starts the names of fields, so give lower-case letters, digits "
                "and underscores, a letter first."
            )

    def masks(self, role: Role) -> str:
        """Return the Detections field of one role: first masks, those after AMR, those AMR rejected, all candidates."""
        return f"{self.key}_{role}"

    @property
    def baseline(self) -> str:
        """Detections: the first masks."""
        return self.masks("baseline")

    @property
    def amr(self) -> str:
        """Detections: the masks after Adaptive Mask Refinement."""
        return self.masks("amr")

    @property
    def rejected(self) -> str:
        """Detections: the candidates that AMR decoded and did not keep."""
        return self.masks("rejected")

    @property
    def candidates(self) -> str:
        """Detections: all masks that a prompt may mean, where the run was asked for them."""
        return self.masks("candidates")

    @property
    def labels(self) -> str:
        """Detections: the only masks of a run that compares nothing."""
        return self.masks("labels")

    @property
    def points(self) -> str:
        """Keypoints: the points that AMR placed."""
        return f"{self.key}_points"

    @property
    def failures(self) -> str:
        """Classifications: prompts (or the sample) that could not be answered, one of `FAILURES` each, and why."""
        return f"{self.key}_failures"

    @property
    def digest(self) -> str:
        """String: digest of settings, model, image file and prompts; a sample that has it is done."""
        return f"{self.key}_digest"

    def failure_tag(self, failure: Failure) -> str:
        """Return the sample's tag for a failure."""
        return f"{self.key}:{failure}"

    def view_name(self, bucket: str) -> str:
        """Return the name of the saved view of a bucket, or of "failures"."""
        return f"{self.key}: {VIEW_TITLES[bucket]}"

    @property
    def written(self) -> tuple[str, ...]:
        """The fields that comparing always writes."""
        return (self.baseline, self.amr, self.rejected, self.points, self.failures, self.digest)

    @property
    def may_be_written(self) -> tuple[str, ...]:
        """The fields that comparing can write, whatever its settings."""
        return (*self.written, self.candidates, self.labels)

    def written_for(self, settings: Settings) -> tuple[str, ...]:
        """Return the fields that comparing writes with these settings."""
        return (*self.written, self.candidates) if settings.candidates else self.written

    @property
    def rank(self) -> str:
        """Integer: the sample's place in the ranking without ground truth."""
        return f"{self.key}_rank"

    @property
    def sums(self) -> dict[str, FieldKind]:
        """Sample field -> kind of the sums that evaluation writes."""
        return {f"{self.key}_{name}": kind for name, kind in SAMPLE_SCORES.items()}

    @property
    def kinds(self) -> dict[str, FieldKind]:
        """Field or attribute -> kind, of everything that comparing always writes; the fields first."""
        return {
            **{self.masks(role): fo.Detections for role in ROLES},
            self.points: fo.Keypoints,
            self.failures: fo.Classifications,
            self.digest: fo.StringField,
            **{f"{self.masks(r)}.detections.{name}": kind for r in ROLES for name, kind in LABEL_ATTRIBUTES.items()},
            **{f"{self.points}.keypoints.{name}": fo.StringField for name in ("prompt_id", "kept")},
            **{f"{self.failures}.classifications.{name}": fo.StringField for name in ("prompt_id", "reason")},
        }

    def label_kinds(self, source: LabelSource) -> dict[str, FieldKind]:
        """Return field or attribute -> kind, of what a run of labels alone writes; the fields first."""
        own = {**OWN_ATTRIBUTES, **SOURCE_ATTRIBUTES[source]}
        kept = {
            path: kind for path, kind in self.kinds.items() if path.partition(".")[0] in (self.failures, self.digest)
        }
        return {
            self.labels: fo.Detections,
            **kept,
            **{f"{self.labels}.detections.{n}": kind for n, kind in own.items()},
        }

    @property
    def candidate_kinds(self) -> dict[str, FieldKind]:
        """Field or attribute -> kind, of what comparing writes where candidates are asked for; the field first."""
        attributes = {f"{self.candidates}.detections.{name}": kind for name, kind in CANDIDATE_ATTRIBUTES.items()}
        return {self.candidates: fo.Detections, **attributes}

    def kinds_for(self, settings: Settings) -> dict[str, FieldKind]:
        """Return field or attribute -> kind, of everything that comparing writes with these settings."""
        return self.kinds | (self.candidate_kinds if settings.candidates else {})


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do; kept with the dataset.

    Attributes:
        prompts: "boxes" of a Detections field, "keypoints" with signs, "random-2" clicks in the ground truth (the
            source paper's protocol for AMR), or "everything": no prompts.
        prompt_field: the Detections or Keypoints field; None for the other two.
        truth_field: Detections with masks to compare with; None without ground truth. "random-2" needs it.
        weights: a name that `refinesam.load` knows, or a file.
        amr: "full" looks closer at each object, an encoding for each prompt; "fast" looks again, after a box, at what
            was encoded before; "paper" places points by the source paper's equation.
        masks: kept in the "database", or as PNG "files" named by mask_path.
        masks_dir: folder of those files.
        seed: of the random clicks.
        points_per_side: of the grid of "everything"; None: as many as suit the model.
        candidates: store all masks that a prompt may mean, a part, the object, a group, beside the one that is chosen.

    Raises:
        ConfigError: an unknown value, or a field that is missing.
    """

    prompts: PromptSource = "boxes"
    prompt_field: str | None = None
    truth_field: str | None = None
    weights: str = "builtin"
    amr: AMRSetting = "full"
    masks: MaskStorage = "database"
    masks_dir: str | None = None
    seed: int = 0
    points_per_side: int | None = None
    candidates: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        for name, value, known in (
            ("prompts", self.prompts, PROMPT_SOURCES),
            ("amr", self.amr, AMR_SETTINGS),
            ("masks", self.masks, MASK_STORAGES),
        ):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
        if self.prompts in ("boxes", "keypoints") and not self.prompt_field:
            raise ConfigError(f"Prompts from {self.prompts} need prompt_field, the field that holds them.")
        if self.prompts == "random-2" and not self.truth_field:
            raise ConfigError("Random clicks are drawn in the ground truth: name its Detections field as truth_field.")
        if self.masks == "files" and not self.masks_dir:
            raise ConfigError("To keep masks as files, give masks_dir, the folder for them.")
        if not isinstance(self.candidates, bool):
            raise ConfigError(f"candidates is {self.candidates!r}; give True or False.")
        check_whole("seed", self.seed, at_least=0)
        if self.points_per_side is not None:
            check_whole("points_per_side", self.points_per_side, at_least=1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
