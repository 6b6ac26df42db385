"""The settings of Adaptive Mask Refinement."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from refinesam.amr.config import AMRConfig, Preset
from refinesam.errors import ConfigError
from refinesam.evaluation.commands import RefinementOption


def test_the_papers_configuration() -> None:
    expected = AMRConfig("paper_equation", 0.6, 0.7, point_count=2, append=True, iterations=1, min_gain=None)
    assert AMRConfig.paper() == expected
    assert AMRConfig().rule == "consensus"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rule", "best", "paper_equation, paper_prose, centre, boundary"),
        ("rule", ["centre"], "choose one of"),
        ("rule", None, "choose one of"),
        ("compactness_threshold", -0.1, "from 0 to 1"),
        ("compactness_threshold", 1.1, "from 0 to 1"),
        ("compactness_threshold", float("nan"), "a number"),
        ("compactness_threshold", "0.6", "a number"),
        ("depth", 1.0, "below 1"),
        ("depth", -0.5, "below 1"),
        ("depth", True, "a number"),
        ("early_exit", 1.5, "from 0 to 1"),
        ("early_exit", None, "a number"),
        ("point_count", 0, "at least 1"),
        ("point_count", 2.0, "whole number"),
        ("point_count", True, "whole number"),
        ("iterations", 0, "at least 1"),
        ("iterations", None, "whole number"),
        ("min_gain", -0.01, "at least 0"),
        ("min_gain", float("inf"), "a number"),
        ("append", 1, "True or False"),
        ("zooms", 4, "give at most 8 numbers"),
        ("zooms", (2.0,) * 9, "give at most 8 numbers"),
        ("zooms", (2.0, 0.9), "at least 1 each"),
        ("zooms", ("2",), "at least 1 each"),
    ],
)
def test_bad_settings_are_named(name: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*{words}"):
        AMRConfig(**{name: value})


@pytest.mark.parametrize(
    ("settings", "ignored", "rules"),
    [
        ({"append": False, "iterations": 5}, "append is False", "paper_equation or paper_prose or centre or boundary"),
        ({"iterations": 2}, "iterations is 2", "paper_equation or paper_prose or centre or boundary"),
        ({"compactness_threshold": 0.5}, "compactness_threshold is 0.5", "paper_equation or paper_prose as"),
        ({"rule": "centre", "compactness_threshold": 0.5}, "compactness_threshold is 0.5", "paper_prose as"),
        ({"rule": "boundary", "depth": 0.5}, "depth is 0.5", "consensus or paper_equation or paper_prose or centre as"),
        ({"rule": "paper_prose", "zooms": ()}, r"zooms is \(\)", "consensus as the rule"),
        ({"rule": "paper_equation", "early_exit": 0.5}, "early_exit is 0.5", "consensus as the rule"),
    ],
)
def test_settings_that_the_rule_would_ignore_are_refused(settings: dict[str, Any], ignored: str, rules: str) -> None:
    rule = settings.get("rule", "consensus")
    with pytest.raises(ConfigError, match=f"^{ignored}, which the rule '{rule}' has no use for: leave it out.*{rules}"):
        AMRConfig(**settings)


def test_presets_by_name() -> None:
    assert [AMRConfig.named(name) for name in get_args(Preset)] == [
        AMRConfig(),
        AMRConfig(zooms=(), early_exit=0.75),
        AMRConfig(rule="paper_equation"),
        AMRConfig(rule="paper_prose"),
    ]
    for unknown in ("best", "", "Full"):
        with pytest.raises(
            ConfigError, match=f"no refinement '{unknown}'; choose one of full, fast, paper, paper-prose"
        ):
            AMRConfig.named(unknown)


def test_the_command_offers_every_preset() -> None:
    offered, _ = get_args(RefinementOption)
    assert get_args(offered) == get_args(Preset)
