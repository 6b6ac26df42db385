"""A dataset's runs: how each begins, what it was made with, how far it is.

One run has one set of settings for all of its samples, so that its numbers mean one thing. Other settings replace all
of its answers or none.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Literal

from refinesam import ConfigError

from .files import folder_of, remove, split_files
from .others import keep_others
from .record import check_free, declare, made, missing, stale
from .samples import Place, Target, target_of
from .schema import FAILURES, VIEW_DESCRIPTIONS, Fields, Settings
from .scoring import score_kinds

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection

__all__ = [
    "begin_run",
    "check_place",
    "check_run",
    "config_of",
    "delete_evaluations",
    "differences",
    "evaluations_of",
    "forget_scores",
    "list_runs",
    "made_as",
    "place_of",
    "present_truth",
    "progress",
    "read_settings",
    "register_run",
    "run_of",
    "view_state",
]

_KIND: Final = "refinesam"


def register_run(dataset: fo.Dataset, run: Fields, settings: Settings, **more: Any) -> None:
    """Note a run and its settings in the dataset, in place of earlier settings of the same key.

    Args:
        dataset: that has the run.
        run: its names.
        settings: what it was asked to do.
        **more: what else is known of it, by name; what was known before stays.
    """
    known = run.key in list_runs(dataset)
    if not known and dataset.has_run(run.key):
        raise ConfigError(f"The dataset has another run {run.key!r} that is no comparison: choose another key.")
    kept = {"record": 1, "key": run.key, **(config_of(dataset, run) if known else {}), **more}
    config = dataset.init_run(kind=_KIND, **{**kept, "settings": settings.to_dict()})
    if known:
        dataset.update_run_config(run.key, config)
    else:
        dataset.register_run(run.key, config)


def config_of(dataset: fo.Dataset, run: Fields) -> dict[str, Any]:
    """Return what is noted of a run beside its settings."""
    kept = dataset.get_run_info(run.key).config.serialize()
    return {name: kept[name] for name in ("record", "key", "frames", "asked", "folders") if name in kept}


def list_runs(dataset: fo.Dataset) -> list[str]:
    """Return the keys of the dataset's runs of refinesam."""
    return list(dataset.list_runs(kind=_KIND))


def read_settings(dataset: fo.Dataset, run: Fields) -> Settings:
    """Return what a run was asked to do.

    Raises:
        ConfigError: the dataset has no such run.
    """
    known = list_runs(dataset)
    if run.key not in known:
        raise ConfigError(f"The dataset has no run {run.key!r}; it has {', '.join(known) or 'none'}: compare first.")
    kept = dataset.get_run_info(run.key).config.settings
    # A setting of a later version that is unknown here is left out.
    return Settings(**{setting.name: kept[setting.name] for setting in fields(Settings) if setting.name in kept})


def run_of(samples: SampleCollection, run_key: str) -> tuple[Target, Fields, Settings]:
    """Return where a run's samples are, its names and its settings.

    Raises:
        ConfigError: no samples, no such run, or one of frames where samples were given, or the other way round.
    """
    run, target = Fields(run_key), target_of(samples)
    settings = read_settings(target.root, run)
    check_place(target, run)
    return target, run, settings


def present_truth(target: Target, settings: Settings) -> str | None:
    """Return the ground truth field that a run names, None if it names none or the dataset no longer has it."""
    name = settings.truth_field
    return name if name is not None and target.field(f"{name}.detections") is not None else None


def made_as(dataset: fo.Dataset, run: Fields) -> Fields:
    """Return the names that a run was made with; FiftyOne can rename the record of a run, not its fields."""
    return Fields(config_of(dataset, run).get("key") or run.key)


def check_place(target: Target, run: Fields) -> None:
    """Raise ConfigError if a run was renamed, or is one of frames where samples were given, or the other way round."""
    key = made_as(target.root, run).key
    if key != run.key:
        raise ConfigError(
            f"The run {run.key!r} was {key!r} when it was made, and its fields are named so: rename it back, "
            f"dataset.rename_run({run.key!r}, {key!r}), or delete it."
        )
    frames = bool(config_of(target.root, run).get("frames"))
    if frames and not target.frames:
        raise ConfigError(
            f"The run {run.key!r} is one of videos' frames: give a view of them, dataset.to_frames(...), or open one "
            "of the run's saved views."
        )
    if target.frames and not frames:
        raise ConfigError(f"The run {run.key!r} is one of samples, not of frames: choose another key for the frames.")


def check_run(target: Target, run: Fields, settings: Settings, asked: str | None = None) -> None:
    """Raise ConfigError if comparing would write over something that is not the run's, or change a part of it.

    Args:
        target: the samples to compare.
        run: names of the fields.
        settings: of the comparison.
        asked: digest of the settings, the model and the refinement; None if that is not known yet.
    """
    root = target.root
    if run.key not in list_runs(root):
        if root.has_run(run.key):
            raise ConfigError(f"The dataset has another run {run.key!r} that is no comparison: choose another key.")
    else:
        check_place(target, run)
        changed = differences(root, run, settings, asked)
        others = _done_elsewhere(target, run) if changed else 0
        if others:
            raise ConfigError(
                f"The run {run.key!r} has {others} other samples that were compared with other settings "
                f"({', '.join(changed.values())}): choose another name for the run, compare all of its samples at "
                "once, or delete it first."
            )
    check_free(
        target, run, run.kinds_for(settings) | (score_kinds(run, settings.truth_field) if settings.truth_field else {})
    )


def differences(dataset: fo.Dataset, run: Fields, settings: Settings, asked: str | None = None) -> dict[str, str]:
    """Return which settings differ from the run's, in words; that ground truth is named at last is no difference."""
    old, new = read_settings(dataset, run).to_dict(), settings.to_dict()
    if old["truth_field"] is None and settings.prompts != "random-2":
        old["truth_field"] = new["truth_field"]
    changed = {name: f"{name}: {old[name]!r}, now {new[name]!r}" for name in new if old[name] != new[name]}
    known = config_of(dataset, run).get("asked")
    if not changed and None not in (known, asked) and known != asked:
        changed["model"] = "another model, or another version of refinement"
    return changed


def _done_elsewhere(target: Target, run: Fields) -> int:
    if target.field(run.digest) is None:
        return 0
    return len(set(target.samples.exists(run.digest).values("id")) - set(target.ids))


def begin_run(target: Target, run: Fields, settings: Settings, asked: str) -> None:
    """Note a run's settings, declare its fields, and clear what answers other settings; `check_run` says if it may.

    Args:
        target: the samples to compare.
        run: names of the fields.
        settings: of the comparison.
        asked: digest of the settings, the model and the refinement.
    """
    check_run(target, run, settings, asked)
    root, known = target.root, run.key in list_runs(target.root)
    changed = differences(root, run, settings, asked) if known else {}
    if changed:
        forget_scores(target, run)
    if changed.keys() - ({"truth_field"} if settings.prompts != "random-2" else set()):
        _forget_answers(target, run)
    elif known and missing(target, run, run.written_for(settings)):
        # What was deleted or renamed cannot be told from what was never answered, so all is answered again.
        target.clear([name for name in (run.digest,) if name in made(target, run)])
    elif not known:
        target.delete(stale(target, run))
    declare(target, run, run.kinds_for(settings))
    folders = list(config_of(root, run).get("folders") or []) if known else []
    if settings.masks_dir and (folder := str(folder_of(root, run, settings.masks_dir))) not in folders:
        folders.append(folder)
    register_run(root, run, settings, frames=target.frames, asked=asked, folders=folders)


def _forget_answers(target: Target, run: Fields) -> None:
    own = set(made(target, run))
    names = [name for name in run.may_be_written if name in own]
    kept = keep_others(target, run, names)
    target.clear([name for name in names if name not in kept])
    for failure in FAILURES:
        target.samples.untag_samples(run.failure_tag(failure))
    alone, _ = split_files(target, run, config_of(target.root, run).get("folders") or ())
    remove(alone)


def forget_scores(place: Place, run: Fields) -> None:
    """Delete what evaluation wrote: sums, attributes of both masks, and those on the ground truth's labels."""
    delete_evaluations(place, run)
    own = made(place, run)
    comparing = run.kinds.keys() | run.candidate_kinds.keys() | {run.rank}
    place.delete([path for path in own if path not in comparing])


def evaluations_of(place: Place, run: Fields) -> list[str]:
    """Return the keys of FiftyOne's evaluations that the run made and that nobody renamed since."""
    own = set(made(place, run))
    return [key for key in place.root.list_evaluations() if f"{key}_tp" in own]


def delete_evaluations(place: Place, run: Fields) -> None:
    """Delete the run's evaluations of FiftyOne, which takes their fields along."""
    for key in evaluations_of(place, run):
        place.root.delete_evaluation(key)


def progress(dataset: fo.Dataset, run: Fields) -> tuple[int, int]:
    """Return how many samples (or frames) a run has compared, and how many there are.

    All, if somebody deleted the field that tells.
    """
    place = place_of(dataset, run)
    samples, prefix = (dataset, "frames.") if place.frames else (target_of(dataset).samples, "")
    total = samples.count("frames" if place.frames else None)
    return (total if place.field(run.digest) is None else samples.count(f"{prefix}{run.digest}")), total


def view_state(dataset: fo.Dataset, run: Fields, name: str) -> Literal["own", "other", "none"]:
    """Say whether a saved view of that name is there, and whether the run saved it."""
    if not dataset.has_saved_view(name):
        return "none"
    description = dataset.get_saved_view_info(name)["description"]
    own = {run.view_name(bucket): text for bucket, text in VIEW_DESCRIPTIONS.items()}
    return "own" if description == own.get(name) else "other"


def place_of(dataset: fo.Dataset, run: Fields) -> Place:
    """Return the place of a run's fields."""
    return Place(dataset, bool(config_of(dataset, run).get("frames")))
