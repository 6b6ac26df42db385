"""Finetuning: a run that was killed and resumed is the run that was not, and ends in weights that load."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from refinesam.errors import ConfigError, DatasetError, RefineSAMError, WeightsError
from refinesam.training.finetune.config import FinetuneConfig
from refinesam.training.finetune.run import StepReport, finetune
from refinesam.training.finetune.state import Finetuning
from refinesam.training.loop import write_checkpoint
from refinesam.training.processes import Processes
from refinesam.weights import load_model

CPU = Processes(0, 1, torch.device("cpu"))


@dataclass
class Run:
    """A finished run of four steps, for all tests that only look at one."""

    config: FinetuneConfig
    output: Path
    weights: Path
    reports: list[StepReport]

    @property
    def checkpoint(self) -> dict[str, Any]:
        return torch.load(self.output / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shapes_root: Path, tiny_config: Any) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("whole")
    reports: list[StepReport] = []
    config = tiny_config()
    weights = finetune(config, shapes_root, folder / "run", "cpu", on_step=reports.append)
    yield Run(config, folder / "run", weights, reports)
    shutil.rmtree(folder)


def stop_at(step: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[StepReport], None]:
    def on_step(report: StepReport) -> None:
        if report.step == step:
            raise error

    return on_step


def log_of(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


# ---------------------------------------------------------------- a run and its results


def test_a_run_reports_every_step_and_learns(whole: Run) -> None:
    assert [(report.step, report.steps) for report in whole.reports] == [(step, 4) for step in range(1, 5)]
    assert all(0 < a.seconds <= b.seconds for a, b in zip(whole.reports, whole.reports[1:], strict=False))
    assert whole.reports[-1].loss < whole.reports[0].loss
    assert sorted(path.name for path in whole.output.iterdir()) == [
        "checkpoint.pt", "log.jsonl", "pictures", "weights.safetensors"
    ]  # fmt: skip


def test_the_log_is_json_with_increasing_steps(whole: Run) -> None:
    lines = log_of(whole.output)
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
    training = [line for line in lines if "focal" in line]
    assert set(training[0]) == {
        "step", "seconds", "learning_rate", "total", "focal", "bce", "dice", "iou_error", "best_iou", "chosen_iou"
    }  # fmt: skip
    assert [line["learning_rate"] for line in training[:3]] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert [line["seconds"] for line in training] == sorted(line["seconds"] for line in training)
    validated = [line for line in lines if "focal" not in line]
    assert all(set(line) == {"step", "val_objects", "val_click", "val_3_clicks", "val_box"} for line in validated)
    assert all(0 <= line["val_box"] <= 1 and line["val_objects"] >= 2 for line in validated)


def test_the_result_is_the_moving_average_in_half_precision(whole: Run) -> None:
    assert whole.weights == whole.output / "weights.safetensors"
    model = load_model(whole.weights)
    assert (model.config.name, model.config.input_size) == ("hybrid_ti", 64)
    average = whole.checkpoint["ema"]["values"]
    assert model.state_dict().keys() == average.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, average[name].half().float()), name
    assert any(not torch.equal(average[name], value) for name, value in whole.checkpoint["model"].items())


def test_a_finished_run_is_not_trained_further(whole: Run, shapes_root: Path) -> None:
    before, log = whole.weights.read_bytes(), log_of(whole.output)
    whole.weights.unlink()
    assert finetune(whole.config, shapes_root, whole.output, "cpu", on_step=stop_at(5)) == whole.weights
    assert whole.weights.read_bytes() == before
    assert log_of(whole.output) == log


# ---------------------------------------------------------------- killed and resumed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_steps_and_three_resumed_are_six(
    tiny_config: Any, shapes_root: Path, output: Path, batches_of: Any, assert_same: Any, optimizer: str
) -> None:
    prompts = {"correction_probability": 0.4, "self_probability": 0.4}
    config = tiny_config(prompts=prompts, optim={"optimizer": optimizer})
    batches = batches_of(config, shapes_root, 6)
    uninterrupted = Finetuning(config, CPU)
    for batch in batches:
        if uninterrupted.step == 3:
            uninterrupted.save(output / "checkpoint.pt")
        uninterrupted.train_step(batch)
    torch.manual_seed(12345)
    resumed = Finetuning(config, CPU)
    resumed.resume(output / "checkpoint.pt")
    assert resumed.step == 3
    for batch in batches[3:]:
        resumed.train_step(batch)
    assert_same(uninterrupted.model.state_dict(), resumed.model.state_dict())
    assert_same(uninterrupted.ema.state_dict(), resumed.ema.state_dict())
    for one, other in zip(uninterrupted.optimizers, resumed.optimizers, strict=True):
        assert_same(one.state_dict(), other.state_dict())
    assert uninterrupted.ema.updates == uninterrupted.step == resumed.step == 6


def test_a_killed_run_resumes_from_its_checkpoint(
    whole: Run, shapes_root: Path, output: Path, assert_same: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(whole.config, shapes_root, output, "cpu", on_step=stop_at(4))
    assert [line["step"] for line in log_of(output)] == [1, 2, 2, 3]
    assert not (output / "weights.safetensors").exists()
    resumed: list[StepReport] = []
    weights = finetune(whole.config, shapes_root, output, "cpu", on_step=resumed.append)
    assert [report.step for report in resumed] == [3, 4]
    assert_same(whole.checkpoint, torch.load(output / "checkpoint.pt", weights_only=True))
    assert weights.read_bytes() == whole.weights.read_bytes()
    assert without_seconds(log_of(output)) == without_seconds(log_of(whole.output))


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    tiny_config: Any, shapes_root: Path, output: Path
) -> None:
    config = tiny_config(data={"val_images": 0}, optim={"steps": 2})
    with pytest.raises(KeyboardInterrupt):
        finetune(config, shapes_root, output, "cpu", on_step=stop_at(2))
    assert [line["step"] for line in log_of(output)] == [1]
    with pytest.raises(KeyboardInterrupt):
        finetune(config, shapes_root, output, "cpu", on_step=stop_at(1))
    assert log_of(output) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim": {"learning_rate": 2e-3}}, r"optim\.learning_rate\."),
        ({"seed": 4, "prompts": {"per_image": 3}}, r"prompts\.per_image, seed\."),
        ({"data": {"sampling_power": 1.0}}, r"data\.sampling_power\."),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    whole: Run, tiny_config: Any, shapes_root: Path, changes: dict[str, Any], named: str
) -> None:
    before = (whole.output / "checkpoint.pt").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=named):
        finetune(tiny_config(**changes), shapes_root, whole.output, "cpu")
    assert (whole.output / "checkpoint.pt").stat().st_mtime_ns == before
    assert len(log_of(whole.output)) == 6


def test_settings_that_change_nothing_learnt_may_change(whole: Run, tiny_config: Any) -> None:
    run = Finetuning(tiny_config(log_every=7, checkpoint_every=9, validate_every=5, precision="auto"), CPU)
    run.resume(whole.output / "checkpoint.pt")
    assert run.step == 4


def test_a_setting_younger_than_the_checkpoint_had_its_default_then(whole: Run, tiny_config: Any, output: Path) -> None:
    state = whole.checkpoint
    del state["config"]["model"]["trainable"], state["config"]["optim"]["betas"]
    write_checkpoint(output / "checkpoint.pt", state)
    run = Finetuning(tiny_config(), CPU)
    run.resume(output / "checkpoint.pt")
    assert run.step == 4
    with pytest.raises(ConfigError, match=r"model\.trainable\."):
        Finetuning(tiny_config(model={"trainable": "image_encoder"}), CPU).resume(output / "checkpoint.pt")


@pytest.mark.parametrize("damage", ["truncated", "of something else", "of other tensors"])
def test_a_damaged_checkpoint_is_refused(
    tiny_config: Any, shapes_root: Path, output: Path, whole: Run, damage: str
) -> None:
    output.mkdir()
    path = output / "checkpoint.pt"
    if damage == "truncated":
        path.write_bytes((whole.output / "checkpoint.pt").read_bytes()[:100_000])
    elif damage == "of something else":
        torch.save({"model": {"weight": torch.zeros(3)}}, path)
    else:
        torch.save(whole.checkpoint | {"model": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt"):
        finetune(tiny_config(), shapes_root, output, "cpu")


# ---------------------------------------------------------------- what can go wrong


def test_a_loss_that_is_no_number_stops_the_run_with_the_last_checkpoint(
    tiny_config: Any, shapes_root: Path, output: Path
) -> None:
    optim = {"learning_rate": 1e30, "warmup_steps": 0}
    config = tiny_config(checkpoint_every=1, data={"val_images": 0}, optim=optim)
    with pytest.raises(RefineSAMError, match=r"At step \d the loss is .*Lower optim\.learning_rate"):
        finetune(config, shapes_root, output, "cpu")
    state = torch.load(output / "checkpoint.pt", weights_only=True)
    assert state["step"] == log_of(output)[-1]["step"] >= 1
    assert all(value.isfinite().all() for value in state["model"].values())
    assert not (output / "weights.safetensors").exists()


def test_a_gradient_that_is_no_number_does_not_reach_the_weights(
    tiny_config: Any, shapes_root: Path, batches_of: Any, assert_same: Any
) -> None:
    run = Finetuning(tiny_config(), CPU)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.model.get_parameter("mask_decoder.iou_token.weight").register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(RefineSAMError, match=r"At step 0 the loss is \d.*gradient's norm nan"):
        run.train_step(batches_of(run.config, shapes_root, 1)[0])
    assert_same(run.model.state_dict(), before)
    assert_same(run.ema.values, before)
    assert run.step == 0


def test_no_worker_outlives_a_killed_run(tiny_config: Any, shapes_root: Path, output: Path) -> None:
    config = tiny_config(data={"workers": 1, "val_images": 0})
    with pytest.raises(KeyboardInterrupt) as caught:
        finetune(config, shapes_root, output, "cpu", on_step=stop_at(1))
    assert caught.value is not None, "its traceback is still held here"
    assert multiprocessing.active_children() == []


def test_damaged_images_do_not_stop_a_run(
    tiny_config: Any, tmp_path: Path, output: Path, draw_shapes: Any, write_source: Any
) -> None:
    for split in ("train", "val"):
        folder = write_source(tmp_path, "shapes", [draw_shapes(seed) for seed in range(2)], split=split)
        (folder / "images" / f"{split}1.png").write_bytes(b"damaged")
    config = tiny_config(validate_every=1, optim={"steps": 2, "batch_size": 4})
    finetune(config, tmp_path, output, "cpu")
    assert [line["step"] for line in log_of(output) if "damaged" not in line] == [1, 1, 2, 2]


def test_missing_data_a_bad_device_and_a_bad_folder_are_told(
    tiny_config: Any, shapes_root: Path, tmp_path: Path, output: Path
) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        finetune(tiny_config(data={"sources": ["shapes", "nowhere"]}), shapes_root, output, "cpu")
    with pytest.raises(ConfigError, match=r"Device 'gpu' can't be used here"):
        finetune(tiny_config(), shapes_root, output, "gpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"The results cannot go to .*file.*Name another folder"):
        finetune(tiny_config(), shapes_root, tmp_path / "file", "cpu")


def test_a_pretrained_encoder_is_where_a_run_starts(whole: Run, tmp_path: Path, tiny_config: Any) -> None:
    """The encoder alone is taken over; the decoder begins at random, as without it."""
    fresh = Finetuning(tiny_config(), CPU).model
    config = tiny_config()
    section = config.model.model_copy(update={"encoder_init": str(whole.weights)})
    started = Finetuning(config.model_copy(update={"model": section}), CPU).model
    pretrained = load_model(whole.weights)
    for name, value in started.image_encoder.state_dict().items():
        assert torch.equal(value, pretrained.image_encoder.state_dict()[name].float()), name
    for name, value in started.mask_decoder.state_dict().items():
        assert torch.equal(value, fresh.mask_decoder.state_dict()[name]), name
    section = config.model.model_copy(update={"encoder_init": str(tmp_path / "nowhere.safetensors")})
    with pytest.raises(WeightsError, match="nowhere"):
        Finetuning(config.model_copy(update={"model": section}), CPU)
