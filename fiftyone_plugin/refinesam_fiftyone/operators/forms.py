"""Pieces of forms: choices from the dataset's fields and runs, and what is wrong, said before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import fiftyone.operators as foo
from fiftyone.operators import types

from refinesam import ConfigError
from refinesam.hosts import known_weights

from ..label_runs import list_label_runs
from ..runs import list_runs, progress
from ..samples import target_of
from ..schema import Fields

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection
    from fiftyone.operators.executor import ExecutionContext

__all__ = [
    "DatasetOperator",
    "ask_masks",
    "ask_weights",
    "check_weights",
    "choose",
    "choose_run",
    "counted",
    "execution_options",
    "flag",
    "has_masks",
    "label_fields",
    "masks_dir_of",
    "samples_of",
    "writable_parent",
]

# Labelled samples that are looked at to see whether a field has masks: reading them all would hold up the form.
LOOKED_AT: Final = 100


class DatasetOperator(foo.Operator):
    """An operator with a form; where no dataset is open the form says so."""

    submit = "Run"

    def resolve_input(self, ctx: ExecutionContext) -> types.Property:
        """Build the form, titled with the operator's label."""
        inputs = types.Object()
        if ctx.dataset is None:
            flag(inputs, "no_dataset", "No dataset is open", "Open one first.")
        else:
            self.ask(ctx, inputs)
        view = types.PromptView(label=self.config.label, submit_button_label=self.submit)
        return types.Property(inputs, view=view)

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        raise NotImplementedError


def execution_options(many: bool) -> foo.ExecutionOptions:
    """Let work be done at once or in the background, which is suggested where there is much to do."""
    return foo.ExecutionOptions(
        allow_immediate_execution=True, allow_delegated_execution=True, default_choice_to_delegated=many
    )


def counted(failures: Mapping[str, int]) -> str:
    """Put the counts of failures into words, "" where there are none."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(failures.items()))


def label_fields(samples: SampleCollection, kind: str) -> list[str]:
    """Return the names of the samples' fields of one kind, "Detections" or "Keypoints", without those of runs."""
    target = target_of(samples)
    runs = {name for key in list_runs(target.root) for name in Fields(key).may_be_written}
    return [
        name
        for name, field in target.samples.get_field_schema().items()
        if getattr(getattr(field, "document_type", None), "__name__", None) == kind and name not in runs
    ]


def has_masks(samples: SampleCollection, field: str) -> bool:
    """Return whether a label with a mask is among the first `LOOKED_AT` samples that have labels in the field."""
    labels = f"{field}.detections"
    with_masks = target_of(samples).samples.mongo(
        [
            {"$match": {f"{labels}.0": {"$exists": True}}},
            {"$limit": LOOKED_AT},
            {"$match": {labels: {"$elemMatch": {"$or": [{name: {"$ne": None}} for name in ("mask", "mask_path")]}}}},
            {"$limit": 1},
        ]
    )
    return len(with_masks) > 0


def samples_of(ctx: ExecutionContext) -> Any:
    """Return the samples that the form's target names, whole: filters on labels in the App's view do not strip them.

    Of groups, those of the slice that the form's "slice" names, of all slices of images without one.
    """
    asked, slice_ = ctx.target_view(), ctx.params.get("slice")
    if asked.media_type == "group" and slice_ in asked.group_slices:
        asked = asked.select_group_slices(slice_)
    return target_of(asked).view()


def choose(
    inputs: types.Object, name: str, choices: Iterable[tuple[str, str]], *, radio: bool = False, **options: Any
) -> Any:
    """Add a choice between (value, label) pairs."""
    view = types.RadioGroup() if radio else types.Dropdown()
    for value, label in choices:
        view.add_choice(value, label=label)
    return inputs.enum(name, view.values(), view=view, **options)


def choose_run(
    ctx: ExecutionContext, inputs: types.Object, *, label: str = "Run", of_labels: bool = False
) -> str | None:
    """Add the choice of a run and return the one that is chosen; flag it if there is none.

    Comparisons are offered, and with `of_labels` also runs that found or imported labels.
    """
    found = list_label_runs(ctx.dataset) if of_labels else []
    runs = list_runs(ctx.dataset) + found
    if not runs and of_labels:
        flag(inputs, "no_run", "There is no run yet", "Compare masks, find similar objects or import masks first.")
        return None
    if not runs:
        flag(inputs, "no_run", "Nothing was compared yet", "Run 'Compare masks with and without refinement' first.")
        return None
    choose(inputs, "run_key", [(key, key) for key in runs], label=label, default=runs[-1], required=True)
    chosen = ctx.params.get("run_key")
    if chosen not in runs:
        return None
    done, total = progress(ctx.dataset, Fields(chosen))
    if done < total:
        what = "have labels of this run" if chosen in found else "are compared"
        inputs.view("partly", types.Notice(label=f"{done} of {total} samples of the dataset {what}."))
    return str(chosen)


def ask_masks(ctx: ExecutionContext, inputs: types.Object) -> None:
    """Add the choice of where masks are kept: "masks", and "masks_dir" for files."""
    choices = (("database", "In the database"), ("files", "As PNG files in a folder (for large datasets)"))
    choose(inputs, "masks", choices, radio=True, label="Keep masks", default="database")
    if ctx.params.get("masks") == "files":
        inputs.str("masks_dir", required=True, label="Folder for the masks", default=str(Path.home() / "masks"))


def masks_dir_of(params: dict[str, Any]) -> str | None:
    """Return the folder for masks that a form's values name, None for the database.

    Raises:
        ConfigError: no folder is given, or it cannot be written to.
    """
    if params.get("masks") != "files":
        return None
    folder = params.get("masks_dir")
    if not folder:
        raise ConfigError("To keep masks as files, give masks_dir, the folder for them.")
    if writable_parent(Path(folder)) is None:
        raise ConfigError(f"The folder {folder} cannot be written to: choose another.")
    return str(folder)


def check_weights(weights: str) -> None:
    """Raise ConfigError for weights that name a file which is not there."""
    path = "/" in weights or "\\" in weights or weights.endswith((".safetensors", ".pt", ".pth"))
    if weights != "builtin" and path and not Path(weights).is_file():
        raise ConfigError(f"There is no file {weights}: give another, or a name.")


def ask_weights(inputs: types.Object) -> None:
    """Add the choice of the model."""
    # The App puts the label into the field, so it has to be the name.
    known = [types.Choice(name, label=name, description=entry.summary) for name, entry in known_weights().items()]
    inputs.str(
        "weights",
        default="builtin",
        label="Weights",
        description="A name, whose weights are downloaded where they are missing, or a file",
        view=types.AutocompleteView(choices=known),
    )


def flag(inputs: types.Object, name: str, label: str, description: str) -> None:
    """Add an error to the form, which then cannot be executed."""
    shown = inputs.view(name, types.Error(label=label, description=description))
    shown.invalid = True
    shown.error_message = f"{label}: {description}"


def writable_parent(path: Path) -> Path | None:
    """Return the nearest folder above a path (or itself) that exists, None if that is none that can be written to."""
    nearest = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    return nearest if nearest is not None and nearest.is_dir() and os.access(nearest, os.W_OK) else None
