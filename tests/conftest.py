"""What every test shares: hypothesis without a deadline, because no test may depend on how busy the machine is.

Two processes run the tests. Those of a host stay in one, which starts the host's server or window once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
HOSTS = ("fiftyone", "labelstudio", "napari")

# Tables are as wide in a process without a terminal, where rich would take 80 columns. Set before anything is imported.
os.environ["COLUMNS"] = "200"
# Literal results are torch's to the bit; `test_onnx.py` chooses the other backend itself.
os.environ["REFINESAM_BACKEND"] = "torch"

settings.register_profile("refinesam", deadline=None, print_blob=True)
settings.load_profile("refinesam")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A test that crashes its process fails; it never takes the others along."""
    from groups import Scheduling

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each host's tests together, and those of any other module."""
    for item in items:
        module = item.path.relative_to(TESTS)
        in_host = module.parts[0] in HOSTS
        item.add_marker(pytest.mark.xdist_group(module.parts[0] if in_host else str(module)))
        if in_host:
            # A browser, a window or a server can be late on a busy machine. A fault fails twice; reruns are reported.
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["Timeout", "never"]))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hybrid at 64 x 64 with random weights: it answers nonsense, quickly and always the same."""
    from dataclasses import replace

    import torch

    from fakes import with_positive_scores
    from refinesam.models.build import build_model
    from refinesam.models.config import config_named
    from refinesam.weights import save_weights

    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(replace(config_named("hybrid_ti"), input_size=64))
    with_positive_scores(model)
    save_weights(model, path)
    return path
