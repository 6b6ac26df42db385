"""One run's start and its steps: first weights, parameter groups, rounds of prompts, precision."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from refinesam.errors import ConfigError, WeightsError
from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS
from refinesam.models.mask_decoder import merged_mask
from refinesam.training.finetune.losses import dice_loss, focal_loss, hard_iou, mask_loss
from refinesam.training.finetune.prompts import prompt_length, self_made_prompts
from refinesam.training.finetune.rounds import Draws, round_losses
from refinesam.training.finetune.run import finetune
from refinesam.training.finetune.state import Finetuning
from refinesam.training.processes import Processes
from refinesam.weights import load_model, save_weights

CPU = Processes(0, 1, torch.device("cpu"))

# ---------------------------------------------------------------- where a run starts


def test_the_seed_decides_the_first_weights_and_leaves_the_callers_numbers_alone(
    tiny_config: Any, assert_same: Any
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = Finetuning(tiny_config(seed=3), CPU).model.state_dict()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(3)
    assert_same(first, build_model(CONFIGS["hybrid_ti"]).state_dict())
    other = Finetuning(tiny_config(seed=4), CPU).model.state_dict()
    name = "image_encoder.stem16.weight"
    assert not torch.equal(first[name], other[name])


def test_a_run_starts_from_weights_at_another_input_size(
    tiny_config: Any, shapes_root: Path, tmp_path: Path, output: Path, assert_same: Any
) -> None:
    path = tmp_path / "start.safetensors"
    save_weights(Finetuning(tiny_config(), CPU).model, path)
    model = {"init": str(path), "input_size": 96}
    start = Finetuning(tiny_config(model=model), CPU)
    assert (start.input_size, start.model.config.input_size, start.model.training) == (96, 96, True)
    assert_same(start.model.state_dict(), load_model(path).state_dict())
    assert Finetuning(tiny_config(model=model | {"input_size": 0}), CPU).input_size == 64
    config = tiny_config(model=model, data={"val_images": 1}, optim={"steps": 1})
    weights = finetune(config, shapes_root, output, "cpu")
    path.unlink()
    assert load_model(weights).config.input_size == 96
    assert json.loads((output / "log.jsonl").read_text("utf-8").splitlines()[-1])["val_objects"] > 0


def test_weights_of_another_variant_are_refused(tiny_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with torch.random.fork_rng():
        save_weights(build_model(CONFIGS["efficientsam_ti"]), path)
    with pytest.raises(
        ConfigError, match=r"model\.init .* of the variant efficientsam_ti, model\.variant is hybrid_ti"
    ):
        Finetuning(tiny_config(model={"init": str(path)}), CPU)
    path.unlink()
    with pytest.raises(WeightsError, match=r"other\.safetensors"):
        Finetuning(tiny_config(model={"init": str(path)}), CPU)


# ---------------------------------------------------------------- a step


def test_only_matrices_and_kernels_decay(tiny_config: Any) -> None:
    run = Finetuning(tiny_config(optim={"weight_decay": 0.07}), CPU)
    (optimizer,) = run.optimizers
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(run.model.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decays) == len(named)
    plain = [name for name, parameter in named.items() if decays[id(parameter)] == 0]
    decayed = [name for name, parameter in named.items() if decays[id(parameter)] == 0.07]
    for name, parameter in named.items():
        token = name.endswith(("iou_token.weight", "mask_tokens.weight"))
        if parameter.ndim == 1 or token or "norm" in name or "embed" in name:
            assert name in plain, name
    assert all(name.endswith(".weight") and named[name].ndim in (2, 4) for name in decayed)
    assert {"image_encoder.pos_embed", "mask_decoder.iou_token.weight"} < set(plain)
    # Attention between tokens and image is made of matrices like any other, whatever its name.
    assert {
        "image_encoder.stem16.weight",
        "image_encoder.blocks.0.attn.qkv.weight",
        "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight",
        "mask_decoder.upscale8.weight",
    } < set(decayed)
    norms = [name for name, module in run.model.named_modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]
    assert norms
    assert all(f"{name}.weight" in plain for name in norms)


@pytest.mark.parametrize("trainable", ["image_encoder", "mask_decoder.iou_prediction_head"])
def test_only_the_named_part_is_trained(
    tiny_config: Any, shapes_root: Path, batches_of: Any, assert_same: Any, trainable: str
) -> None:
    run = Finetuning(tiny_config(model={"trainable": trainable}), CPU)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train_step(batches_of(run.config, shapes_root, 1)[0])
    for states in (run.model.state_dict(), run.ema.values):
        changed = [name for name, value in states.items() if not torch.equal(value, before[name])]
        assert changed
        assert all(name.startswith(trainable) for name in changed)
        frozen = {name: value for name, value in states.items() if not name.startswith(trainable)}
        assert_same(frozen, {name: before[name] for name in frozen})


def test_a_part_that_is_not_there_is_told(tiny_config: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.trainable = 'encoder' .*try image_encoder, mask_decoder, prompt_encoder"
    ):
        Finetuning(tiny_config(model={"trainable": "encoder"}), CPU)


def recorded_rounds(run: Finetuning, batch: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Do a step; return what the model was asked and what it answered, round by round."""
    rounds: list[tuple[Any, ...]] = []
    decode = run.model.decode

    def recorded(*inputs: Any) -> Any:
        outputs = decode(*inputs)
        rounds.append((inputs, outputs))
        return outputs

    monkeypatch.setattr(run.model, "decode", recorded)
    run.train_step(batch)
    return rounds


def chosen_logits(logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    index = iou.argmax(-1)
    return torch.stack([torch.stack([logits[b, p, index[b, p]] for p in range(2)]) for b in range(2)]).detach()


def test_a_model_that_learns_to_merge_is_shown_its_merged_mask(
    tiny_config: Any, shapes_root: Path, monkeypatch: pytest.MonkeyPatch, batches_of: Any
) -> None:
    run = Finetuning(tiny_config(prompts={"correction_probability": 1.0}, optim={"merged_mask_weight": 0.4}), CPU)
    (_, answer), (second, _) = recorded_rounds(run, batches_of(run.config, shapes_root, 1)[0], monkeypatch)
    assert torch.equal(second[3], merged_mask(*answer).detach())
    assert not second[3].requires_grad
    assert not torch.equal(second[3], chosen_logits(*answer))


@pytest.mark.parametrize(("correction", "logits_only"), [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_a_second_round_shows_the_chosen_mask_and_a_correction_or_the_mask_alone(
    tiny_config: Any,
    shapes_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    correction: float,
    logits_only: float,
    batches_of: Any,
) -> None:
    prompts = {"correction_probability": correction, "logits_only_probability": logits_only}
    run = Finetuning(tiny_config(prompts=prompts), CPU)
    rounds = recorded_rounds(run, batches_of(run.config, shapes_root, 1)[0], monkeypatch)
    assert len(rounds) == 1 + int(correction)
    if correction:
        (first, answer), (second, _) = rounds
        assert torch.equal(second[3], chosen_logits(*answer))
        assert not second[3].requires_grad
        assert torch.equal(second[1][:, :, :-1], first[1])
        if logits_only:
            assert (second[2] == -1).all()
        else:
            assert torch.equal(second[2][:, :, :-1], first[2])
            assert second[2][:, :, -1].min() >= 0


def test_a_second_round_of_self_made_prompts_follows_from_the_chosen_masks(
    tiny_config: Any, shapes_root: Path, monkeypatch: pytest.MonkeyPatch, batches_of: Any
) -> None:
    prompts = {"correction_probability": 0.0, "self_probability": 1.0, "self_logits_probability": 1.0}
    run = Finetuning(tiny_config(prompts=prompts), CPU)
    (first, answer), (second, _) = recorded_rounds(run, batches_of(run.config, shapes_root, 1)[0], monkeypatch)
    shown = chosen_logits(*answer)
    assert torch.equal(second[3], shown)
    draws = Draws.of(run.config.seed, 0, 2, range(2))
    points, labels, _ = self_made_prompts(shown, first[1], first[2], 1.0, draws.generators)
    assert torch.equal(second[1], points)
    assert torch.equal(second[2], labels)


@pytest.mark.parametrize("mask_weight", [0.0, 0.3, 1.0])
def test_a_self_made_rounds_masks_count_less_and_its_scores_in_full(
    tiny_config: Any, shapes_root: Path, monkeypatch: pytest.MonkeyPatch, batches_of: Any, mask_weight: float
) -> None:
    prompts = {"correction_probability": 0.0, "self_probability": 1.0}
    optim = {"self_mask_weight": mask_weight, "chosen_mask_weight": 0.5, "iou_weight": 2.0}
    run = Finetuning(tiny_config(prompts=prompts, optim=optim), CPU)
    batch = batches_of(run.config, shapes_root, 1)[0]
    answers = [outputs for _, outputs in recorded_rounds(run, batch, monkeypatch)]
    first, second = (mask_loss(*answer, batch["target"], chosen_mask_weight=0.5, iou_weight=0) for answer in answers)
    scores = [
        (iou - hard_iou(logits, batch["target"].unsqueeze(2).expand_as(logits))).square().mean()
        for logits, iou in answers
    ]
    masks = (
        first.total
        + 0.1 * _mean_of_all(answers[0], batch)
        + mask_weight * (second.total + 0.1 * _mean_of_all(answers[1], batch))
    )
    monkeypatch.undo()
    again = Finetuning(run.config, CPU)
    _, total = round_losses(again.model, batch, run.config, Draws.of(run.config.seed, 0, 2, range(2)))
    assert total.item() == pytest.approx((masks + 2 * sum(scores)).item(), rel=1e-5)


def _mean_of_all(answer: tuple[torch.Tensor, torch.Tensor], batch: Any) -> torch.Tensor:
    truth = batch["target"].unsqueeze(2).expand_as(answer[0])
    return (20 * focal_loss(answer[0], truth) + dice_loss(answer[0], truth)).mean()


def test_the_chances_of_second_rounds_are_those_configured(
    tiny_config: Any, shapes_root: Path, monkeypatch: pytest.MonkeyPatch, batches_of: Any
) -> None:
    class Rounds(nn.Module):
        """Answers at once, and counts what is asked by the number of its points."""

        asked: Counter[int] = Counter()
        config = CONFIGS["hybrid_ti"]

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels

        def decode(self, features: Any, points: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
            self.asked[points.shape[2]] += 1
            return torch.zeros(2, 2, 3, 16, 16), torch.zeros(2, 2, 3)

    config = tiny_config(prompts={"correction_probability": 0.2, "self_probability": 0.5})
    batch, model = batches_of(config, shapes_root, 1)[0], Rounds()
    for step in range(300):
        round_losses(model, batch, config, Draws.of(0, step, 2, range(2)))
    length = prompt_length(config.prompts)
    assert model.asked[length] == 300
    # One correcting click, or two slots of a self-made prompt; four standard deviations of 300 draws.
    assert abs(model.asked[length + 1] / 300 - 0.2) < 0.1
    assert abs(model.asked[length + 2] / 300 - 0.5) < 0.12


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(tiny_config: Any, shapes_root: Path, batches_of: Any) -> None:
    prompts = {"correction_probability": 1.0}
    losses = {}
    for precision in ("fp32", "bf16", "bf16_decoder"):
        run = Finetuning(tiny_config(precision=precision, prompts=prompts), CPU)
        batch = batches_of(run.config, shapes_root, 1)[0]
        losses[precision] = run.train_step(batch)["total"]
        assert run.bf16 == (precision != "fp32")
        assert {value.dtype for value in run.model.state_dict().values()} == {torch.float32}
        assert {p.grad.dtype for p in run.model.parameters() if p.grad is not None} == {torch.float32}
    assert len(set(losses.values())) == 3
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16_decoder"] == pytest.approx(losses["fp32"], rel=0.1)
    assert Finetuning(tiny_config(precision="auto"), CPU).bf16 is False


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("bf16_decoder", torch.float32)])
def test_the_image_encoder_may_stay_in_fp32(
    tiny_config: Any, shapes_root: Path, batches_of: Any, precision: str, dtype: torch.dtype
) -> None:
    run = Finetuning(tiny_config(precision=precision), CPU)
    seen: dict[str, torch.dtype] = {}
    linear = {"encoder": run.model.image_encoder.blocks[0].mlp.fc1, "decoder": run.model.mask_decoder.upscale8}
    for name, module in linear.items():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.dtype}))
    run.train_step(batches_of(run.config, shapes_root, 1)[0])
    assert seen == {"encoder": dtype, "decoder": torch.bfloat16}


def test_corrections_may_come_without_the_earlier_logits(tiny_config: Any, shapes_root: Path, batches_of: Any) -> None:
    prompts = {"correction_probability": 1.0, "logits_only_probability": 0.0}
    for share, fed_back in ((0.0, True), (1.0, False)):
        run = Finetuning(tiny_config(prompts=prompts | {"points_only_probability": share}), CPU)
        asked: list[bool] = []

        def counted(*given: Any, decode: Any = run.model.decode, asked: list[bool] = asked) -> Any:
            asked.append(len(given) == 4 and given[3] is not None)
            return decode(*given)

        run.model.decode = counted  # type: ignore[method-assign]
        run.train_step(batches_of(run.config, shapes_root, 1)[0])
        assert asked == [False, fed_back]


def test_one_batch_is_learnt_by_heart(tiny_config: Any, shapes_root: Path, batches_of: Any) -> None:
    optim = {"steps": 60, "learning_rate": 1e-3, "warmup_steps": 5, "ema_decay": 0.0}
    config = tiny_config(prompts={"box_probability": 1.0, "correction_probability": 0.0}, optim=optim)
    run = Finetuning(config, CPU)
    batch = batches_of(config, shapes_root, 1)[0]
    for _ in range(60):
        loss = run.train_step(batch)
    assert loss["chosen_iou"] > 0.95
    assert loss["iou_error"] < 0.06
