"""Finetuning at any scale: in parts, in several processes, compiled; and of the released architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refinesam.errors import ConfigError, RefineSAMError
from refinesam.images import read_image
from refinesam.loading import load
from refinesam.training.finetune.rounds import Draws
from refinesam.training.finetune.run import finetune
from refinesam.training.finetune.state import Finetuning
from refinesam.training.processes import Processes
from refinesam.types import Prompt

CPU = Processes(0, 1, torch.device("cpu"))
# What EfficientSAM's prompt encoder can be asked.
RELEASED = {
    "model": {"variant": "efficientsam_ti", "input_size": 64},
    "prompts": {
        "negative_probability": 0.0, "logits_only_probability": 0.0, "self_logits_probability": 0.0, "max_clicks": 2,
        "correction_probability": 0.5, "self_probability": 0.5,
    },
}  # fmt: skip


def checkpoint_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], rate: float) -> None:
    assert first.keys() == second.keys()
    # Adam moves a weight by the rate however small its gradient is, so that rounding may turn single ones around.
    distance = torch.cat([(first[key] - second[key]).flatten().abs() for key in first])
    assert distance.mean() < 0.01 * rate


# ---------------------------------------------------------------- parts and processes


def test_draws_follow_the_place_in_the_whole_batch() -> None:
    whole = Draws.of(3, 7, 8, range(8))
    part = Draws.of(3, 7, 8, range(4, 6))
    assert (part.kind, part.variation) == (whole.kind, whole.variation)

    def numbers(draws: Draws) -> list[float]:
        return [torch.rand(1, generator=generator).item() for generator in draws.generators]

    found = numbers(whole)
    assert numbers(part) == found[4:6]
    assert len(set(found)) == 8
    others = [numbers(Draws.of(3, 8, 8, range(8))), numbers(Draws.of(4, 7, 8, range(8)))]
    assert not any(value in found for other in others for value in other)


def test_parts_one_after_the_other_are_the_whole_batch(tiny_config: Any, shapes_root: Path, batches_of: Any) -> None:
    prompts, optim = {"correction_probability": 0.4, "self_probability": 0.4}, {"batch_size": 4}
    whole = Finetuning(tiny_config(prompts=prompts, optim=optim), CPU)
    parts = Finetuning(tiny_config(prompts=prompts, optim=optim | {"accumulate": 2}), CPU)
    for batch in batches_of(whole.config, shapes_root, 3):
        expected = whole.train_step(batch)
        assert parts.train_step(batch) == pytest.approx(expected, rel=1e-3)
    assert_close(parts.model.state_dict(), whole.model.state_dict(), 1e-3)


def test_two_processes_do_what_one_does(
    tiny_config: Any, shapes_root: Path, output: Path, in_two_processes: Any
) -> None:
    prompts = {"correction_probability": 0.5, "self_probability": 0.5}
    optim = {"batch_size": 4, "steps": 3, "accumulate": 2}
    config = tiny_config(prompts=prompts, optim=optim, checkpoint_every=100, pictures=0)
    in_two_processes(finetune, config, shapes_root, output / "two")
    finetune(config, shapes_root, output / "one", "cpu")
    one, two = log_of(output / "one"), log_of(output / "two")
    assert [line["step"] for line in two] == [line["step"] for line in one], "one log, of the first process"
    for alone, together in zip(one, two, strict=True):
        del alone["seconds" if "seconds" in alone else "step"]
        assert {key: together[key] for key in alone} == pytest.approx(alone, rel=2e-3, abs=2e-3)
    assert_close(checkpoint_of(output / "one")["model"], checkpoint_of(output / "two")["model"], 1e-3)
    # The same weights resume in any number of processes.
    resumed = Finetuning(config, CPU)
    resumed.resume(output / "two" / "checkpoint.pt")
    assert resumed.step == 3


def test_a_batch_that_cannot_be_divided_is_refused(tiny_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 2 cannot be divided among 1 processes .*accumulate = 3"):
        Finetuning(tiny_config(optim={"accumulate": 3}), CPU)
    with pytest.raises(ConfigError, match="among 4 processes"):
        Finetuning(tiny_config(), Processes(0, 4, torch.device("cpu")))


def test_a_compiled_encoder_learns_the_same(
    tiny_config: Any, shapes_root: Path, batches_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiler's front end alone: its back end needs a C++ compiler, which not every machine has."""
    compiled: list[torch.nn.Module] = []

    def front_end(module: torch.nn.Module) -> None:
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", front_end)
    plain, fast = Finetuning(tiny_config(), CPU), Finetuning(tiny_config(compile=True), CPU)
    assert compiled == [fast.model.image_encoder]
    batch = batches_of(plain.config, shapes_root, 1)[0]
    assert fast.train_step(batch) == pytest.approx(plain.train_step(batch), rel=1e-4)
    assert fast.model.state_dict().keys() == plain.model.state_dict().keys()
    assert_close(fast.averaged_model().state_dict(), plain.averaged_model().state_dict(), 1e-3)


# ---------------------------------------------------------------- the released architecture


def test_the_released_architecture_is_trained_and_loads(
    tiny_config: Any, shapes_root: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A click, a box, corrections and self-made prompts: never more than six points, never a negative one or a mask."""
    asked: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
    config = tiny_config(**RELEASED, optim={"steps": 6})
    start = Finetuning(config, CPU).model
    decode = type(start).decode

    def recorded(self: Any, features: Any, points: torch.Tensor, labels: torch.Tensor, *rest: Any) -> Any:
        asked.append((points, labels, rest[0] if rest else None))
        return decode(self, features, points, labels, *rest)

    monkeypatch.setattr(type(start), "decode", recorded)
    weights = finetune(config, shapes_root, output, "cpu")
    lengths = {points.shape[2] for points, _, _ in asked}
    assert {4, 5, 6} <= lengths and max(lengths) == 6
    assert all(mask is None and not (labels == 0).any() for _, labels, mask in asked)
    # The released weights were trained with padding at (-1, -1), and have it so when they are asked.
    assert all((points[labels == -1] == -1).all() for points, labels, _ in asked)
    image = read_image(shapes_root / "shapes" / "images" / "val1.png")
    prediction = load(weights).encode(image).predict(Prompt(points=[[40, 30]]))
    assert prediction.mask.shape == image.shape[:2]
    changed = checkpoint_of(output)["model"]
    parts = {
        name.partition(".")[0] for name, value in start.state_dict().items() if not torch.equal(value, changed[name])
    }
    assert parts == {"image_encoder", "mask_decoder", "prompt_encoder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negative_probability": 0.1}, "does not take what prompts.negative_probability ask for: set them to 0"),
        ({"logits_only_probability": 0.1}, "what prompts.logits_only_probability ask for"),
        ({"self_logits_probability": 0.1}, "what prompts.self_logits_probability ask for"),
        ({"max_clicks": 3}, r"prompts need 7 points .*efficientsam_ti takes 6: lower prompts.max_clicks"),
    ],
)
def test_prompts_that_the_variant_cannot_take_are_refused(
    tiny_config: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(model=RELEASED["model"], prompts=RELEASED["prompts"] | changes)


def test_three_clicks_fit_where_only_corrections_are_added(tiny_config: Any) -> None:
    prompts = RELEASED["prompts"] | {"max_clicks": 3, "self_probability": 0.0}
    tiny_config(model=RELEASED["model"], prompts=prompts)
    with pytest.raises(ValueError, match="prompts need 7 points"):
        tiny_config(model=RELEASED["model"], prompts=prompts | {"max_clicks": 4})


def test_images_are_resized_as_the_model_resizes_them(tiny_config: Any, shapes_root: Path, batches_of: Any) -> None:
    """What the predictor feeds the released architecture is not what it feeds ours: training has to know."""
    from refinesam.models.build import normalise
    from refinesam.models.config import CONFIGS
    from refinesam.models.frames import Frame
    from refinesam.training.finetune.validate import WholeImages
    from refinesam.training.sources.layouts import load_sources

    config = tiny_config()
    for family, other in (("hybrid", "efficientsam"), ("efficientsam", "hybrid")):
        samples = WholeImages(load_sources(shapes_root, config.data.sources, "val"), 48, 2, family=family)
        pixels = read_image(shapes_root / "shapes" / "images" / "val1.png")
        fed = normalise(samples[0]["image"][0])
        variants = {c.family: c for c in CONFIGS.values()}
        expected, wrong = (
            Frame(variants[name].family, 48, pixels.shape[:2]).resize(pixels) for name in (family, other)
        )
        # Pixels are rounded in between, and OpenCV's weights are, too: less than a grey level, in standard deviations.
        assert (fed - expected).abs().max() < 1 / 57
        assert (fed - wrong).abs().max() > 0.1


# ---------------------------------------------------------------- what can be watched, and what can go wrong


def test_validation_draws_what_the_model_does(tiny_config: Any, shapes_root: Path, output: Path) -> None:
    config = tiny_config(pictures=2, validate_every=2, data={"val_images": 3}, optim={"steps": 3})
    finetune(config, shapes_root, output, "cpu")
    paths = sorted((output / "pictures").iterdir())
    assert [path.name for path in paths] == ["step_000002.png", "step_000003.png"]
    picture = read_image(paths[-1])
    # Two rows of annotation, click, three clicks and box.
    assert picture.shape == (2 * 320, 4 * 320, 3)
    panels = picture.reshape(2, 320, 4, 320, 3).swapaxes(1, 2)
    assert all(not np.array_equal(panels[row, 0], panels[row, 3]) for row in range(2))
    assert not np.array_equal(panels[0, 0], panels[1, 0])


def test_a_damaged_image_is_named_once_in_the_log(
    tiny_config: Any, tmp_path: Path, output: Path, draw_shapes: Any, write_source: Any
) -> None:
    folder = write_source(tmp_path, "shapes", [draw_shapes(seed) for seed in range(2)])
    (folder / "images" / "train1.png").write_bytes(b"damaged")
    reports = []
    config = tiny_config(data={"val_images": 0}, optim={"steps": 3, "batch_size": 4})
    finetune(config, tmp_path, output, "cpu", on_step=reports.append)
    told = [line["damaged"] for line in log_of(output) if "damaged" in line]
    assert len(told) == 1
    assert "train1.png" in told[0]
    assert reports[-1].damaged == 1


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(
    tiny_config: Any, shapes_root: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(data={"val_images": 0}, checkpoint_every=1)
    save, saved = torch.save, []

    def full_at_the_third(state: Any, path: Any) -> None:
        saved.append(state["step"])
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full_at_the_third)
    with pytest.raises(RefineSAMError, match=r"checkpoint\.pt cannot be written .*No space left.*Make room"):
        finetune(config, shapes_root, output, "cpu")
    assert saved == [1, 2, 3]
    assert checkpoint_of(output)["step"] == 2
    assert not [path for path in output.iterdir() if path.name not in ("checkpoint.pt", "log.jsonl")]


def test_tensorboard_has_what_the_log_has(tiny_config: Any, shapes_root: Path, output: Path) -> None:
    config = tiny_config(data={"val_images": 0}, optim={"steps": 2}, tensorboard=True)
    finetune(config, shapes_root, output, "cpu")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("total")] == [1, 2]
    assert [round(event.value, 4) for event in events.Scalars("total")] == [
        round(line["total"], 4) for line in log_of(output)
    ]
