"""Pretraining runs: killed at any step and resumed they are the run that was not, and nothing that fails costs more."""

from __future__ import annotations

import json
import math
import resource
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from refinesam.errors import ConfigError, DatasetError, MissingExtraError, RefineSAMError, WeightsError
from refinesam.images import write_png
from refinesam.models.build import build_model, normalise
from refinesam.models.config import CONFIGS
from refinesam.training.classify.config import ClassifyConfig
from refinesam.training.commands import app
from refinesam.training.encoder_file import load_encoder, pretrained_keys, save_encoder
from refinesam.training.pretrain.config import MaeConfig, SamiConfig
from refinesam.training.pretrain.mae import pixel_targets
from refinesam.training.pretrain.run import PretrainReport, pretrain
from refinesam.training.pretrain.state import Pretraining
from refinesam.training.processes import Processes
from refinesam.training.settings import read_settings
from refinesam.weights import save_weights

STUDENT = {"variant": "efficientsam_ti", "input_size": 64}
ALONE = Processes(0, 1, torch.device("cpu"))
RECIPES = Path(__file__).resolve().parents[3] / "training"


def values_of(**sections: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "seed": 3,
        "precision": "fp32",
        "checkpoint_every": 2,
        "log_every": 1,
        "student": {"variant": "hybrid_ti", "input_size": 32},
        "decoder": {"width": 16, "depth": 1, "heads": 2},
        "data": {"workers": 0},
        "optim": {"epochs": 2.0, "warmup_epochs": 1.0, "batch_size": 4, "learning_rate": 1e-3, "clip_norm": 1.0},
    }
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    return values


def mae_config(**sections: Any) -> MaeConfig:
    return MaeConfig.model_validate(values_of(**sections))


def sami_config(**sections: Any) -> SamiConfig:
    return SamiConfig.model_validate(values_of(**({"teacher": {"weights": "builtin"}} | sections)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, draw_shapes: Any) -> Path:
    """Eight images: two steps of four an epoch. Not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        write_png(folder / f"{number}.png", draw_shapes(number)[0])
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A folder for runs; removed, because a checkpoint takes 70 MB."""
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


def stop_at(step: int) -> Callable[[PretrainReport], None]:
    def on_report(report: PretrainReport) -> None:
        if report.stage == "steps" and report.done == step:
            raise KeyboardInterrupt

    return on_report


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def checkpoint_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


# ---------------------------------------------------------------- the paper's recipe


def test_the_shipped_recipe_is_the_papers() -> None:
    config = read_settings(RECIPES / "sami_efficientsam_ti.toml", SamiConfig)
    assert (config.student.variant, config.student.input_size, config.student.mask_ratio) == (
        "efficientsam_ti",
        224,
        0.75,
    )
    assert (config.teacher.weights, config.teacher.target) == ("sam_vit_h", "before_neck")
    assert not config.teacher.normalise_patches
    assert (config.decoder.width, config.decoder.depth) == (512, 8)
    images = 1_281_167
    run = Pretraining(config, images, ALONE, target_dim=1280)
    assert (run.steps, run.warmup_steps) == (round(400 * images / 4096), round(40 * images / 4096))
    assert run.part * config.optim.accumulate == 4096
    assert all(group["betas"] == (0.9, 0.95) for group in run.optimizer.param_groups)
    decayed, others = run.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert sum(p.numel() for p in others["params"] if p.ndim > 1) == 512 + 197 * 192, "mask token and positions"
    assert run.model.head.weight.shape == (1280, 512)
    other = read_settings(RECIPES / "mae_efficientsam_ti.toml", MaeConfig)
    assert (other.student, other.decoder, other.data) == (config.student, config.decoder, config.data)
    assert other.optim.model_dump() | {"epochs": 400.0} == config.optim.model_dump()
    assert other.optim.epochs == 1600.0


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    kinds = {"sami": SamiConfig, "mae": MaeConfig, "classify": ClassifyConfig}
    method = path.stem.partition("_")[0]
    if kind := kinds.get(method):
        assert read_settings(path, kind) != kind(), "a recipe of defaults alone would be none"
    else:
        assert method in ("builtin", "finetune", "gpu"), "finetuning's are tested with its settings"


def test_the_rate_rises_in_warm_up_epochs_and_falls_as_a_cosine(photos: Path, runs: Path) -> None:
    optim = {"epochs": 8.0, "warmup_epochs": 2.0, "batch_size": 8, "learning_rate": 2.4e-3}
    config = mae_config(checkpoint_every=100, optim=optim)
    pretrain(config, photos, runs, "cpu")
    rates = [line["learning_rate"] for line in log_of(runs)]
    expected = [2.4e-3 * (s + 1) / 2 if s < 2 else 1.2e-3 * (1 + math.cos(math.pi * (s - 2) / 6)) for s in range(8)]
    assert rates == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------- a run


def test_a_run_reports_logs_and_writes_the_encoder(photos: Path, runs: Path) -> None:
    reports: list[PretrainReport] = []
    path = pretrain(sami_config(student=STUDENT), photos, runs, "cpu", on_report=reports.append)
    assert [(r.stage, r.done, r.total, r.damaged) for r in reports] == [("steps", s, 4, 0) for s in (1, 2, 3, 4)]
    assert sorted(p.name for p in runs.iterdir()) == ["checkpoint.pt", "encoder.safetensors", "log.jsonl"]
    assert path == runs / "encoder.safetensors"
    lines = log_of(runs)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5, 2.0]
    assert set(lines[0]) == {
        "step", "epoch", "learning_rate", "loss", "mean_target_loss", "gradient_norm", "damaged_images"
    }  # fmt: skip
    assert [line["loss"] for line in lines] == pytest.approx([r.loss for r in reports], abs=1e-6)
    model = build_model(CONFIGS["efficientsam_ti"])
    load_encoder(model, path)
    trained = checkpoint_of(runs)["model"]
    for key in pretrained_keys(model):
        assert torch.equal(model.image_encoder.state_dict()[key], trained[f"encoder.{key}"]), key


def test_the_mean_target_loss_is_that_of_the_batchs_mean(photos: Path) -> None:
    run = Pretraining(mae_config(student=STUDENT), 8, ALONE)
    image = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    result = run.train_step(iter([{"image": image, "damaged": ["", "a: b", "", "c: d\ne: f"]}]))
    target = pixel_targets(normalise(image), True).flatten(0, 1)
    assert result.mean_target_loss == pytest.approx((target - target.mean(0)).square().mean().item(), rel=1e-5)
    assert result.damaged == {"a: b", "c: d", "e: f"}


@pytest.mark.parametrize("method", ["sami", "mae"])
def test_a_student_learns_more_than_the_mean_of_its_targets(method: str) -> None:
    """Eight colours, told by what is visible; their targets are the pixels, or a vector for each colour."""
    colours = torch.tensor([[255 * (number >> bit & 1) for bit in range(3)] for number in range(8)], dtype=torch.uint8)
    batch: Any = {"image": colours[:, :, None, None].expand(8, 3, 32, 32), "damaged": [""] * 8}
    sections = {
        "student": {"variant": "efficientsam_ti", "mask_ratio": 0.5},
        "decoder": {"width": 64},
        "optim": {"epochs": 16.0, "warmup_epochs": 2.0, "learning_rate": 4e-3, "batch_size": 8},
    }
    if method == "sami":
        vectors = torch.randn(8, 1, 32, generator=torch.Generator().manual_seed(0))
        batch["target"] = vectors.expand(8, 4, 32).half()
        run = Pretraining(sami_config(**sections), 8, ALONE, target_dim=32)
    else:
        run = Pretraining(mae_config(pixels={"normalise_patches": False}, **sections), 8, ALONE)
    results = [run.train_step(iter([batch])) for _ in range(run.steps)]
    assert results[0].loss > results[0].mean_target_loss
    assert results[-1].loss < 0.75 * results[-1].mean_target_loss


def test_bf16_is_near_float32(photos: Path) -> None:
    image = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    results = []
    for precision in ("fp32", "bf16"):
        run = Pretraining(mae_config(precision=precision, student=STUDENT), 8, ALONE)
        results.append(run.train_step(iter([{"image": image, "damaged": [""] * 4}])))
    assert results[0].loss != results[1].loss
    assert results[0].loss == pytest.approx(results[1].loss, rel=0.02)
    assert results[0].gradient_norm == pytest.approx(results[1].gradient_norm, rel=0.1)


# ---------------------------------------------------------------- killed and resumed


def test_killed_after_every_step_and_resumed_is_the_uninterrupted_run(
    photos: Path, runs: Path, assert_same: Any
) -> None:
    def config(name: str) -> SamiConfig:
        return sami_config(
            teacher={"weights": "builtin", "cache": str(runs / f"{name}-cache")},
            data={"fixed_views": 2},
            optim={"ema_decay": 0.9, "accumulate": 2},
        )

    whole, killed = runs / "whole", runs / "killed"
    pretrain(config("whole"), photos, whole, "cpu")
    # With a checkpoint every two steps, steps 1 and 3 are lost and done again.
    for step, checkpoint in ((1, None), (2, 2), (3, 2), (4, 4)):
        with pytest.raises(KeyboardInterrupt):
            pretrain(config("killed"), photos, killed, "cpu", on_report=stop_at(step))
        assert not (killed / "encoder.safetensors").exists()
        assert (checkpoint_of(killed)["step"] if (killed / "checkpoint.pt").exists() else None) == checkpoint
        torch.manual_seed(999 + step)
    path = pretrain(config("killed"), photos, killed, "cpu", on_report=stop_at(1))
    states = [checkpoint_of(folder) for folder in (whole, killed)]
    for state in states:
        state["seconds"], state["config"]["teacher"]["cache"] = 0.0, ""
    assert_same(*states)
    assert path.read_bytes() == (whole / "encoder.safetensors").read_bytes()
    assert log_of(killed) == log_of(whole)


def test_the_result_is_the_moving_average_where_there_is_one(photos: Path, runs: Path) -> None:
    path = pretrain(mae_config(optim={"ema_decay": 0.9}), photos, runs, "cpu")
    model = build_model(CONFIGS["hybrid_ti"])
    load_encoder(model, path)
    state = checkpoint_of(runs)
    key = "blocks.0.mlp.fc1.weight"
    assert torch.equal(model.image_encoder.state_dict()[key], state["ema"]["values"][f"encoder.{key}"])
    assert not torch.equal(model.image_encoder.state_dict()[key], state["model"][f"encoder.{key}"])


def test_a_checkpoint_of_other_settings_or_data_is_refused(photos: Path, runs: Path, draw_shapes: Any) -> None:
    pretrain(mae_config(optim={"epochs": 1.0}), photos, runs, "cpu")
    before = (runs / "checkpoint.pt").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"optim\.epochs, student\.mask_ratio\. Restore"):
        pretrain(mae_config(student={"mask_ratio": 0.5}), photos, runs, "cpu")
    more = runs / "more"
    shutil.copytree(photos, more)
    write_png(more / "9.png", draw_shapes(9)[0])
    with pytest.raises(ConfigError, match=r"had 8 images and have 9"):
        pretrain(mae_config(optim={"epochs": 1.0}), more, runs, "cpu")
    with pytest.raises(WeightsError, match=r"no checkpoint of this version's Sami"):
        pretrain(sami_config(optim={"epochs": 1.0}), photos, runs, "cpu")
    assert (runs / "checkpoint.pt").stat().st_mtime_ns == before
    pretrain(mae_config(optim={"epochs": 1.0, "accumulate": 2}, log_every=7, data={"workers": 1}), photos, runs, "cpu")


# ---------------------------------------------------------------- batches in parts, processes


def test_parts_of_a_batch_add_up_to_it(photos: Path, runs: Path) -> None:
    logs = []
    for accumulate in (1, 4):
        output = runs / str(accumulate)
        pretrain(mae_config(optim={"epochs": 1.0, "accumulate": accumulate}), photos, output, "cpu")
        logs.append(log_of(output))
    for one, four in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(four["gradient_norm"], rel=1e-3)


def test_two_processes_do_what_one_does(photos: Path, runs: Path, in_two_processes: Any) -> None:
    config = mae_config(optim={"epochs": 1.0, "accumulate": 2}, checkpoint_every=100)
    in_two_processes(pretrain, config, photos, runs / "two")
    pretrain(config, photos, runs / "one", "cpu")
    one, two = log_of(runs / "one"), log_of(runs / "two")
    assert [line["step"] for line in two] == [1, 2], "one log, of the first process"
    for alone, together in zip(one, two, strict=True):
        assert alone["loss"] == pytest.approx(together["loss"], rel=1e-4)
        assert alone["gradient_norm"] == pytest.approx(together["gradient_norm"], rel=1e-3)
    first, second = checkpoint_of(runs / "one")["model"], checkpoint_of(runs / "two")["model"]
    assert first.keys() == second.keys()
    # Adam moves a weight by the rate however small its gradient is, so that rounding may turn single ones around.
    distance = torch.cat([(first[key] - second[key]).flatten().abs() for key in first])
    assert distance.mean() < 0.01 * config.optim.learning_rate


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 4 cannot be divided among 1 processes .*accumulate = 3"):
        Pretraining(mae_config(optim={"accumulate": 3}), 8, ALONE)
    with pytest.raises(ConfigError, match="among 8 processes"):
        Pretraining(mae_config(), 8, Processes(0, 8, torch.device("cpu")))


# ---------------------------------------------------------------- what can go wrong


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_checkpoint(photos: Path, runs: Path) -> None:
    config = mae_config(optim={"learning_rate": 1e30, "clip_norm": 0.0, "warmup_epochs": 0.0}, checkpoint_every=1)
    with pytest.raises(RefineSAMError, match=r"At step \d the loss is .*learning_rate"):
        pretrain(config, photos, runs, "cpu")
    state = checkpoint_of(runs)
    assert state["step"] == len(log_of(runs)) >= 1
    assert not (runs / "encoder.safetensors").exists()
    again = Pretraining(config, 8, ALONE)
    again.resume(runs / "checkpoint.pt")
    assert again.step == state["step"]


def test_a_full_disk_leaves_the_last_checkpoint(photos: Path, runs: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    saved: list[bytes] = []

    def fill_disk(report: PretrainReport) -> None:
        if report.done == 2:
            saved.append((runs / "checkpoint.pt").read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))

    try:
        with pytest.raises(RefineSAMError, match=r"checkpoint\.pt cannot be written .*Make room"):
            pretrain(mae_config(), photos, runs, "cpu", on_report=fill_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (runs / "checkpoint.pt").read_bytes() == saved[0]
    assert sorted(path.name for path in runs.iterdir()) == ["checkpoint.pt", "log.jsonl"]
    pretrain(mae_config(), photos, runs, "cpu")
    assert [line["step"] for line in log_of(runs)] == [1, 2, 3, 4]


def test_a_full_disk_while_targets_are_cached_is_told(photos: Path, runs: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = sami_config(teacher={"weights": "builtin", "cache": str(runs / "cache")}, data={"fixed_views": 2})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(RefineSAMError, match=r"Writing to .*cache failed .*Make room"):
            pretrain(config, photos, runs / "run", "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((runs / "cache").iterdir()) == []


def test_damaged_images_are_logged_once_and_counted(photos: Path, runs: Path) -> None:
    data = runs / "data"
    shutil.copytree(photos, data)
    (data / "2.png").write_bytes(b"no image")
    (data / "5.png").write_bytes(b"")
    config = mae_config(optim={"epochs": 4.0}, log_every=3)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, data, runs / "run", "cpu", on_report=stop_at(7))
    reports: list[PretrainReport] = []
    pretrain(config, data, runs / "run", "cpu", on_report=reports.append)
    assert reports[-1].damaged == 2
    lines = log_of(runs / "run")
    assert sorted(line["damaged"].partition(":")[0] for line in lines if "damaged" in line) == ["2.png", "5.png"]
    assert lines[-1]["damaged_images"] == 2


def test_what_is_missing_is_named(photos: Path, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder .*nowhere"):
        pretrain(mae_config(), tmp_path / "nowhere", runs, "cpu")
    with pytest.raises(WeightsError, match="no_such_weights"):
        pretrain(sami_config(teacher={"weights": "no_such_weights"}), photos, runs, "cpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot go to .*file"):
        pretrain(mae_config(), photos, tmp_path / "file", "cpu")
    with pytest.raises(ConfigError, match="Device 'gpu'"):
        pretrain(mae_config(), photos, runs, "gpu")


def test_tensorboard_is_an_extra(photos: Path, runs: Path) -> None:
    config = mae_config(tensorboard=True, optim={"epochs": 0.5})
    if find_spec("tensorboard") is None:
        with pytest.raises(MissingExtraError, match=r"refinesam\[train\]"):
            pretrain(config, photos, runs, "cpu")
    else:
        pretrain(config, photos, runs, "cpu")
        assert [path.stat().st_size > 0 for path in (runs / "tensorboard").iterdir()] == [True]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "[student]\nvariant = 'sam_vit_b'",
            r"student\.variant is 'sam_vit_b': pretraining trains the encoders of eff",
        ),
        ("[optim]\nbatchsize = 8", r"optim\.batchsize is unknown"),
        ("[student]\ninput_size = 100", r"student\.input_size is 100"),
        ("[student]\nmask_ratio = 1.0", r"student\.mask_ratio is 1\.0"),
        ("[decoder]\nwidth = 40\nheads = 16", r"decoder: width 40 is not a multiple of heads 16"),
        ("[data]\ncrop_area = [0.5, 0.2]", r"data\.crop_area is .*the smaller one first"),
        ("[data]\ncrop_area = [0.5, 1.5]", r"data\.crop_area is .*at most"),
        ("[teacher]\ncache = 'c'", r"teacher\.cache keeps the targets .* data\.fixed_views"),
        ("seed = '3'", r"seed is '3'"),
        ("seed", r"is not TOML"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=named):
        read_settings(tmp_path / "c.toml", SamiConfig)
    with pytest.raises(ConfigError, match="Cannot read"):
        read_settings(tmp_path / "missing.toml", SamiConfig)


# ---------------------------------------------------------------- the encoder's file


def test_an_encoder_fills_what_was_pretrained_and_nothing_else(tmp_path: Path) -> None:
    for variant in ("efficientsam_ti", "hybrid_ti"):
        source, model = build_model(CONFIGS[variant]), build_model(CONFIGS[variant])
        before = {key: value.clone() for key, value in model.state_dict().items()}
        save_encoder(source, tmp_path / "encoder.safetensors", "sami")
        load_encoder(model, tmp_path / "encoder.safetensors")
        filled = {f"image_encoder.{key}" for key in pretrained_keys(source)}
        assert {key.split(".")[1] for key in filled} == set(dict(source.image_encoder.named_children())) - {
            "neck", "high_res8", "high_res4"
        } | {"pos_embed"}  # fmt: skip
        for key, value in model.state_dict().items():
            assert torch.equal(value, (source.state_dict() if key in filled else before)[key]), key


def test_whole_weights_give_their_encoder(tmp_path: Path) -> None:
    source, model = build_model(CONFIGS["hybrid_ti"]), build_model(CONFIGS["hybrid_ti"])
    save_weights(source, tmp_path / "weights.safetensors", torch.float32)
    decoder = {key: value.clone() for key, value in model.mask_decoder.state_dict().items()}
    load_encoder(model, tmp_path / "weights.safetensors")
    for key, value in source.image_encoder.state_dict().items():
        assert torch.equal(model.image_encoder.state_dict()[key], value), key
    assert all(torch.equal(value, decoder[key]) for key, value in model.mask_decoder.state_dict().items())


def test_encoders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(build_model(CONFIGS["efficientsam_ti"]), path, "mae")
    with pytest.raises(WeightsError, match=r"for the encoder of efficientsam_ti, needed is one of hybrid_ti"):
        load_encoder(build_model(CONFIGS["hybrid_ti"]), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_encoder(build_model(CONFIGS["efficientsam_ti"]), path)
    with pytest.raises(WeightsError, match="nor an existing file"):
        load_encoder(build_model(CONFIGS["efficientsam_ti"]), tmp_path / "missing.safetensors")
    broken = build_model(CONFIGS["efficientsam_ti"])
    with torch.no_grad():
        broken.image_encoder.get_parameter("pos_embed")[0, 0, 0] = torch.nan
    with pytest.raises(WeightsError, match="NaN or infinity in pos_embed"):
        save_encoder(broken, path, "mae")


# ---------------------------------------------------------------- command line


def toml_of(values: dict[str, Any]) -> str:
    plain = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    tables = [f"[{k}]\n{toml_of(v)}" for k, v in values.items() if isinstance(v, dict)]
    return "\n".join(plain + tables)


def test_the_command_pretrains_and_names_the_encoder(photos: Path, runs: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "0.png").write_bytes(b"no image")
    for method, extra in (("mae", {}), ("sami", {"teacher": {"weights": "builtin"}})):
        (tmp_path / "c.toml").write_text(toml_of(values_of(optim={"epochs": 1.0}, **extra)))
        arguments = [method, str(tmp_path / "c.toml"), "--data", str(data), "--output", str(runs / method)]
        done = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
        assert done.exit_code == 0, done.output
        assert f"Encoder: {runs / method / 'encoder.safetensors'}" in done.output
        assert "1 images or shards could not be used" in done.output
