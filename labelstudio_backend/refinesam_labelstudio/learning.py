"""From approved annotations to a new model version: a recipe for the core's finetuning, and the list of versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from refinesam import ConfigError, DatasetError, RefineSAMError
from refinesam.hosts import replacing, write_json
from refinesam_labelstudio.corrections import project_folder, waiting, write_dataset
from refinesam_labelstudio.json_types import JsonObject

__all__ = ["finetune_project", "weights_for"]

VERSIONS = "versions.json"


def weights_for(weights: str) -> str:
    """Return what `refinesam.load` takes for a name, a file of weights, or a project's versions.json: its newest.

    Raises:
        ConfigError: a versions.json that can't be read or names no version.
    """
    path = Path(weights)
    if path.suffix != ".json":
        return weights
    try:
        newest = json.loads(path.read_text("utf-8"))["versions"][-1]["weights"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} lists no model version ({type(error).__name__}): give one that `refinesam labelstudio finetune` "
            "wrote, a name or a file of weights."
        ) from error
    return str(path.parent / newest)


def finetune_project(
    root: Path,
    project_id: int,
    *,
    weights: str = "builtin",
    steps: int = 200,
    batch_size: int = 4,
    learning_rate: float = 1e-4,
    trainable: str = "mask_decoder",
    device: str = "auto",
    run: Callable[[Sequence[str]], int] = subprocess.call,
) -> Path:
    """Finetune from a project's approved annotations and register the result as its newest version.

    The run is `refinesam train finetune`; one that was killed goes on where it was, when asked for with the same
    settings.

    Args:
        root: where annotations are collected.
        project_id: whose.
        weights: to start from: a name, a file, or a versions.json.
        steps: of the run.
        batch_size: images a step.
        learning_rate: the highest.
        trainable: which parameters are trained, by the start of their names; "" trains all.
        device: "auto", "cpu", "cuda", ...
        run: starts a command and returns its exit code.

    Returns:
        The project's versions.json, which `serve --weights` takes.

    Raises:
        DatasetError: nothing to learn from yet.
        ConfigError: weights that can't be told.
        RefineSAMError: the finetuning failed; it said why.
    """
    folder = project_folder(root, project_id)
    _prepare(folder, project_id)
    number, start = len(_versions(folder)) + 1, weights_for(weights)
    output = folder / "runs" / str(number)
    recipe = output / "recipe.toml"
    text = _recipe(folder, start, steps, batch_size, learning_rate, trainable)
    with replacing(recipe) as temporary:
        temporary.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "refinesam.cli", "train", "finetune", str(recipe)]
    code = run([*command, "--data", str(root), "--output", str(output), "--device", device])
    if code != 0:
        raise RefineSAMError(
            f"The finetuning ended with exit code {code}, see above for the reason. Nothing is registered; {output} "
            "holds how far it came."
        )
    # Under a name of its own, since the name is the beginning of the model version.
    made = folder / f"project{int(project_id)}_{number}.safetensors"
    return _register(folder, output / "weights.safetensors", made, {"started_from": start, "steps": steps})


def _prepare(folder: Path, project_id: int) -> None:
    """Write the dataset from what is approved now; DatasetError if that is nothing to train on."""
    write_dataset(folder)
    if _has_objects(folder / "instances_train.json"):
        return
    if count := len(waiting(folder)):
        raise DatasetError(
            f"Nothing of {folder} is approved, {count} tasks wait for it: look at them and approve them with "
            f"`refinesam labelstudio approve --project {int(project_id)}`."
        )
    raise DatasetError(
        f"{folder} holds no accepted annotation to train on: run the backend with --learn, add its /webhook to the "
        "project's webhooks, and submit some that correct the model's masks or are drawn by hand."
    )


def _register(folder: Path, weights: Path, made: Path, details: JsonObject) -> Path:
    with replacing(made) as temporary:
        shutil.copyfile(weights, temporary)
    entry = {"weights": made.name, "made": datetime.now(UTC).isoformat(timespec="seconds"), **details}
    write_json(folder / VERSIONS, {"versions": [*_versions(folder), entry]}, indent=2)
    return folder / VERSIONS


def _versions(folder: Path) -> list[JsonObject]:
    path = folder / VERSIONS
    try:
        versions: list[JsonObject] = json.loads(path.read_text("utf-8"))["versions"] if path.exists() else []
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} can't be read ({type(error).__name__}: {error}): mend it or move it away."
        ) from error
    return versions


def _has_objects(path: Path) -> bool:
    return path.is_file() and bool(json.loads(path.read_text("utf-8"))["annotations"])


def _recipe(folder: Path, start: str, steps: int, batch_size: int, learning_rate: float, trainable: str) -> str:
    from refinesam.hosts import variant_of  # It brings torch, which the other commands do without.

    variant, input_size = variant_of(start)
    validated = _has_objects(folder / "instances_val.json")
    # A JSON string of ASCII is one of TOML, too.
    return f"""# Written by `refinesam labelstudio finetune`.
checkpoint_every = {min(steps, 100)}
validate_every = {steps}

[model]
variant = {json.dumps(variant)}
input_size = {input_size}
init = {json.dumps(start)}
trainable = {json.dumps(trainable)}

[data]
sources = [{json.dumps(folder.name)}]
workers = 0
val_images = {20 if validated else 0}

[optim]
steps = {steps}
batch_size = {batch_size}
learning_rate = {learning_rate!r}
warmup_steps = {min(20, steps // 10)}
ema_decay = {0.99 if steps >= 100 else 0.9}
"""
