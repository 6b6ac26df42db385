"""Settings: the shipped recipes are read, and whatever is wrong with a file is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from refinesam.errors import ConfigError
from refinesam.training.finetune.config import TRAINABLE, read_config, read_phases

FOLDER = Path(__file__).resolve().parents[3] / "training"
RECIPES = sorted([*FOLDER.glob("builtin*.toml"), *FOLDER.glob("gpu.toml"), *FOLDER.glob("finetune_*.toml")])
GOOD = """
seed = 1

[model]
variant = "hybrid_ti"

[data]
sources = ["a", "b"]

[optim]
steps = 10
learning_rate = 1
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    assert all(phase.model.variant in TRAINABLE for phase in read_phases(path))


def test_there_are_shipped_recipes() -> None:
    assert RECIPES


def test_a_file_is_read_with_defaults_for_the_rest(tmp_path: Path) -> None:
    config = read_config(str(written(tmp_path, GOOD)))
    assert (config.seed, config.data.sources, config.optim.steps) == (1, ("a", "b"), 10)
    assert config.optim.learning_rate == 1.0, "a whole number is a number"
    assert (config.optim.betas, config.model.input_size, config.precision) == ((0.9, 0.999), 0, "auto")


def test_recipes_without_self_made_prompts_have_none(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, GOOD)).prompts.self_probability == 0


def test_settings_cannot_change(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        config.optim.steps = 5


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        # unknown keys
        ("seed = 1", "sed = 1", r"sed is unknown"),
        ("steps = 10", "steps = 10\nlerning_rate = 1", r"optim\.lerning_rate is unknown"),
        ("[model]", "[modell]\n[model]", r"modell is unknown"),
        # missing keys
        ("steps = 10", "", r"optim\.steps is missing"),
        ('sources = ["a", "b"]', "", r"data\.sources is missing"),
        ("[optim]\nsteps = 10\nlearning_rate = 1", "", r"optim is missing"),
        # of the wrong kind
        ("steps = 10", 'steps = "10"', r"optim\.steps is '10': .*integer"),
        ("steps = 10", "steps = 10.0", r"optim\.steps is 10\.0: .*integer"),
        ("steps = 10", "steps = true", r"optim\.steps is True: .*integer"),
        ("seed = 1", "seed = 2026-01-01", r"seed is .*: .*integer"),
        ("learning_rate = 1", 'learning_rate = "fast"', r"optim\.learning_rate is 'fast': .*number"),
        ('["a", "b"]', '"a"', r"data\.sources is 'a': .*tuple"),
        ('["a", "b"]', '["a", 2]', r"data\.sources\.1 is 2: .*string"),
        ('[model]\nvariant = "hybrid_ti"', 'model = "hybrid_ti"', r"model is 'hybrid_ti': .*"),
        ("steps = 10", "steps = 10\nbetas = [0.9]", r"optim\.betas\.1 is missing"),
        # out of range
        ("steps = 10", "steps = 0", r"optim\.steps is 0: .*greater than or equal to 1"),
        ("seed = 1", "seed = -1", r"seed is -1: .*greater than or equal to 0"),
        ("seed = 1", "seed = 4294967296", r"seed is 4294967296: .*less than"),
        ("learning_rate = 1", "learning_rate = 0", r"optim\.learning_rate is 0: .*greater than 0"),
        ("learning_rate = 1", "learning_rate = inf", r"optim\.learning_rate is inf: .*finite"),
        ("learning_rate = 1", "weight_decay = nan", r"optim\.weight_decay is nan: .*"),
        ("learning_rate = 1", "ema_decay = 1.0", r"optim\.ema_decay is 1\.0: .*less than 1"),
        ("learning_rate = 1", "betas = [0.9, 1.0]", r"optim\.betas\.1 is 1\.0: .*less than 1"),
        ("learning_rate = 1", 'schedule = "step"', r"optim\.schedule is 'step': .*'cosine' or 'linear'"),
        ('["a", "b"]', "[]", r"data\.sources is \[\]: .*at least 1 item"),
        ('["a", "b"]', '["a", ""]', r"data\.sources\.1 is '': .*at least 1 character"),
        ('["a", "b"]', '["a"]\nzoom_probability = 1.5', r"data\.zoom_probability is 1\.5: .*less than or equal to 1"),
        ('["a", "b"]', '["a"]\nworkers = -1', r"data\.workers is -1: .*"),
        ("[optim]", "[prompts]\nmax_clicks = 0\n[optim]", r"prompts\.max_clicks is 0: .*"),
        (
            "[optim]",
            "[prompts]\ncorrection_probability = 0.75\nself_probability = 0.5\n[optim]",
            r"prompts\.self_probability is 0\.5: with correction_probability 0\.75 it is above 1",
        ),
        (
            "[optim]",
            "[prompts]\ncorrection_probability = 2\nself_probability = 0.5\n[optim]",
            r"prompts\.correction_probability is 2: .*less than or equal to 1",
        ),
        ("[optim]", "[optim]\nself_mask_weight = -0.1", r"optim\.self_mask_weight is -0\.1: .*"),
        ('variant = "hybrid_ti"', "input_size = 250", r"model\.input_size is 250: .*multiple of 16"),
        ('variant = "hybrid_ti"', "input_size = -16", r"model\.input_size is -16: .*"),
        ('variant = "hybrid_ti"', 'variant = "resnet50"', r"model\.variant is 'resnet50': finetuning trains"),
        ('variant = "hybrid_ti"', 'variant = "efficientsam_ti"', r"efficientsam_ti does not take what prompts\.neg"),
        (
            'variant = "hybrid_ti"',
            'variant = "sam_vit_b"',
            r"model\.variant is 'sam_vit_b': finetuning trains efficientsam_ti, efficientsam_s, hybrid_ti",
        ),
        ("steps = 10", "steps = 10\nrate_factors = { stages = -1.0 }", r"optim\.rate_factors\.stages is -1\.0"),
        (
            "[optim]",
            "[prompts]\npoints_only_probability = 0.95\n[optim]",
            r"points_only_probability is 0\.95: .*above 1",
        ),
        ("seed = 1", 'precision = "fp16"', r"precision is 'fp16': .*"),
        ("seed = 1", "log_every = 0", r"log_every is 0: .*"),
        # not TOML
        ("seed = 1", "seed = ", r"not TOML: .*line 2"),
        ("steps = 10", "steps = 10\nsteps = 11", r"not TOML: .*overwrite"),
        ("[optim]", "[optim", r"not TOML"),
    ],
)
def test_a_bad_file_is_refused_and_the_key_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert GOOD.count(old) == 1
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=named) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("steps = 10", "steps = 0\nbatch_size = 0").replace("seed = 1", "sed = 1")
    with pytest.raises(ConfigError, match=r"(?s)optim\.steps.*optim\.batch_size.*sed"):
        read_config(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00seed")
    for path in (tmp_path / "missing.toml", tmp_path, binary):
        with pytest.raises(ConfigError, match=r"Cannot read the configuration .*Give the path of a TOML file"):
            read_config(path)


def test_phases_change_some_settings_each(tmp_path: Path) -> None:
    text = GOOD + "\n[[phase]]\n[phase.optim]\nsteps = 3\n[[phase]]\nseed = 9\n[phase.model]\ninput_size = 64\n"
    first, second = read_phases(written(tmp_path, text))
    whole = read_config(written(tmp_path, GOOD))
    assert first == whole.model_copy(update={"optim": whole.optim.model_copy(update={"steps": 3})})
    assert (second.seed, second.model.input_size, second.optim) == (9, 64, whole.optim)
    assert read_phases(written(tmp_path, GOOD)) == [whole]


@pytest.mark.parametrize(
    ("phases", "named"),
    [
        ("phase = 3\n", r"needs its phases as tables"),
        ("[[phase]]\n[phase.optim]\nstep = 3\n", r"optim\.step is unknown"),
        ("[[phase]]\n[phase.model]\ninit = 'builtin'\n", r"a phase a model\.init of its own"),
    ],
)
def test_bad_phases_are_refused(tmp_path: Path, phases: str, named: str) -> None:
    text = phases + GOOD if phases.startswith("phase") else GOOD + "\n" + phases
    with pytest.raises(ConfigError, match=named):
        read_phases(written(tmp_path, text))
