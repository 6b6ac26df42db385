"""`refinesam train finetune` on a file with phases: one run after the other, each from the weights before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from refinesam.cli import main
from refinesam.weights import load_model


def test_a_phase_goes_on_from_the_weights_of_the_one_before(
    shapes_root: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'precision = "fp32"\nlog_every = 1\npictures = 0\n[data]\nsources = ["shapes"]\nworkers = 0\nval_images = 0\n'
        "[prompts]\nper_image = 2\n[optim]\nbatch_size = 2\nwarmup_steps = 1\nema_decay = 0.0\nsteps = 1\n"
        # The second phase changes nothing: its weights are those of the first.
        "[[phase]]\nmodel = { input_size = 64 }\n"
        "[[phase]]\nmodel = { input_size = 96 }\noptim = { learning_rate = 1e-12, weight_decay = 0.0 }\n",
        "utf-8",
    )
    arguments = ["train", "finetune", config, "--data", shapes_root, "--output", output, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["refinesam", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    first, second = (load_model(output / f"phase{number}" / "weights.safetensors") for number in (1, 2))
    assert (first.config.input_size, second.config.input_size) == (64, 96)
    for name, value in second.state_dict().items():
        assert (value - first.state_dict()[name]).abs().max() < 1e-4, name
    for number in (1, 2):
        lines = (output / f"phase{number}" / "log.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1]
