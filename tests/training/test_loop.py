"""Learning-rate schedule, moving average, checkpoints and log."""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from refinesam.errors import RefineSAMError, WeightsError
from refinesam.training.loop import (
    JsonLines,
    WeightAverage,
    learning_rate,
    parameter_groups,
    read_checkpoint,
    write_checkpoint,
)

# ---------------------------------------------------------------- learning rate


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(
    ("steps", "warmup", "peak", "final"), [(100, 10, 4e-4, 1e-5), (50, 0, 1.0, 0.0), (7, 6, 2.0, 1.0)]
)
def test_learning_rate_follows_its_formula(schedule: Any, steps: int, warmup: int, peak: float, final: float) -> None:
    for step in range(steps):
        if step < warmup:
            expected = (step + 1) / warmup * peak
        else:
            done = (step - warmup) / (steps - warmup)
            share = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
            expected = share * peak + (1 - share) * final
        assert learning_rate(step, steps, peak, final, warmup, schedule) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "schedule", "expected"),
    [
        (0, "cosine", 0.2),
        (4, "cosine", 1.0),
        (5, "cosine", 1.0),
        (55, "cosine", 0.55),
        (55, "linear", 0.55),
        (30, "linear", 0.775),
        (30, "cosine", 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),
        (105, "linear", 0.1),
        (500, "cosine", 0.1),
    ],
)
def test_learning_rate_by_hand(step: int, schedule: Any, expected: float) -> None:
    assert learning_rate(step, 105, 1.0, 0.1, 5, schedule) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_is_constant_after_warm_up_when_it_ends_at_its_peak(schedule: Any) -> None:
    assert {learning_rate(step, 40, 6e-4, 6e-4, 3, schedule) for step in range(3, 40)} == {6e-4}


def test_a_run_may_end_within_its_warm_up() -> None:
    assert [learning_rate(step, 2, 1.0, 0.0, 4, "cosine") for step in range(2)] == [0.25, 0.5]


# ---------------------------------------------------------------- moving average


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, dtype=torch.float64)
        self.register_buffer("frequencies", torch.tensor([0.1, 0.7], dtype=torch.float64))


def wander(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def test_weight_average_is_the_naive_loops() -> None:
    model = Small()
    average = WeightAverage(model, decay=0.6)
    expected = {name: value.flatten().tolist() for name, value in model.state_dict().items()}
    for update in range(1, 16):
        wander(model, update)
        average.update(model)
        decay = min(0.6, (1 + update) / (10 + update))
        for name, value in model.state_dict().items():
            new = value.flatten().tolist()
            expected[name] = [decay * old + (1 - decay) * now for old, now in zip(expected[name], new, strict=True)]
    assert decay == 0.6, "the loop must get beyond the warm-up of the average"
    for name, values in expected.items():
        assert average.values[name].flatten().tolist() == pytest.approx(values, rel=1e-12)
    assert torch.equal(average.values["frequencies"], model.frequencies), "what is constant stays as it is"


def test_weight_average_of_decay_zero_is_the_model_itself() -> None:
    model = Small()
    average = WeightAverage(model, decay=0.0)
    wander(model, 1)
    average.update(model)
    assert torch.allclose(average.values["linear.weight"], model.linear.weight)


def test_weight_average_goes_on_from_its_state() -> None:
    first, second = Small(), Small()
    second.load_state_dict(first.state_dict())
    whole, begun = WeightAverage(first, 0.9), WeightAverage(first, 0.9)
    for seed in range(3):
        wander(first, seed)
        whole.update(first)
        begun.update(first)
    resumed = WeightAverage(second, 0.9)
    resumed.load_state_dict(begun.state_dict())
    for seed in range(3, 6):
        wander(first, seed)
        whole.update(first)
        resumed.update(first)
    assert all(torch.equal(whole.values[name], resumed.values[name]) for name in whole.values)


# ---------------------------------------------------------------- checkpoints


class Unwritable:
    """Fails while it is being pickled, as a full disk or Ctrl-C would."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    state = {"step": 3, "seconds": 1.5, "model": {"a": torch.arange(4.0)}, "config": {"betas": [0.9, 0.999]}}
    write_checkpoint(tmp_path / "new" / "checkpoint.pt", state)
    found = read_checkpoint(tmp_path / "new" / "checkpoint.pt")
    assert torch.equal(found.pop("model")["a"], state.pop("model")["a"])
    assert found == state


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), RefineSAMError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
    ],
)
def test_a_failing_write_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"step": 1})
    before = path.read_bytes()
    with pytest.raises(raised):
        write_checkpoint(path, {"step": 2, "model": torch.zeros(100_000), "broken": Unwritable(error)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


class Program:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    "damage", ["truncated", "half", "empty", "text", "noise", "program", "list", "missing", "folder"]
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    path, trace = tmp_path / "checkpoint.pt", tmp_path / "trace"
    write_checkpoint(path, {"step": 1, "model": torch.arange(1000.0)})
    content = path.read_bytes()
    damaged = {
        "truncated": content[:-1],
        "half": content[: len(content) // 2],
        "empty": b"",
        "text": b"step = 1\n",
        "noise": bytes(range(256)) * 20,
    }
    if damage in damaged:
        path.write_bytes(damaged[damage])
    elif damage == "program":
        torch.save({"step": Program(trace)}, path)
    elif damage == "list":
        torch.save([1, 2], path)
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    with pytest.raises(WeightsError, match=r"checkpoint\.pt.*(Delete it|no checkpoint)"):
        read_checkpoint(path)
    assert not trace.exists(), "nothing in a checkpoint is executed"


# ---------------------------------------------------------------- log


def lines_of(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text("utf-8").splitlines()]


def test_every_line_is_on_disk_as_json_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    with JsonLines(path, resumed_at=0) as log:
        log.write(1, loss=torch.tensor(0.12345678), note="Größe")
        assert lines_of(path) == [{"step": 1, "loss": 0.123457, "note": "Größe"}]
        log.write(step=2, loss=1)
    assert lines_of(path)[1] == {"step": 2, "loss": 1}


def test_a_resumed_log_has_no_steps_that_are_done_again_and_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLines(path, resumed_at=0) as log:
        for step in (2, 4, 4, 5, 6):
            log.write(step, loss=step)
    path.write_text(path.read_text("utf-8") + '{"step": 3, "lo', "utf-8")
    with JsonLines(path, resumed_at=4) as log:
        log.write(5, loss=55)
    assert lines_of(path) == [{"step": s, "loss": v} for s, v in ((2, 2), (4, 4), (4, 4), (5, 55))]


def test_a_run_from_the_start_has_a_log_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for loss in (1, 2):
        with JsonLines(path, resumed_at=0) as log:
            log.write(1, loss=loss)
    assert lines_of(path) == [{"step": 1, "loss": 2}]


def test_the_log_is_closed_when_an_error_leaves_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), JsonLines(tmp_path / "log.jsonl", 0) as log:
        log.write(1, loss=1 / 0)
    with pytest.raises(ValueError, match="closed"):
        log.write(2, loss=1)


def test_learning_rates_differ_by_the_start_of_names() -> None:
    model = nn.Sequential(OrderedDict(stages=nn.Linear(2, 3), head=nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))))
    factors = {"stages": 0.25, "head": 0.5, "head.1": 2.0}
    found = {
        id(parameter): (group["rate_factor"], group["weight_decay"])
        for group in parameter_groups(model, 0.1, factors)
        for parameter in group["params"]
    }
    assert {name: found[id(parameter)] for name, parameter in model.named_parameters()} == {
        "stages.weight": (0.25, 0.1),
        "stages.bias": (0.25, 0.0),
        "head.0.weight": (0.5, 0.1),
        "head.0.bias": (0.5, 0.0),
        "head.1.weight": (2.0, 0.0),
        "head.1.bias": (2.0, 0.0),
    }
