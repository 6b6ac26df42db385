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
    assert AMRConfig().rule == "closer_look"


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
        ("least_agreement", 1.5, "from 0 to 1"),
        ("least_agreement", None, "a number"),
        ("point_count", 0, "at least 1"),
        ("point_count", 2.0, "whole number"),
        ("point_count", True, "whole number"),
        ("iterations", 0, "at least 1"),
        ("iterations", None, "whole number"),
        ("min_gain", -0.01, "at least 0"),
        ("min_gain", float("inf"), "a number"),
        ("append", 1, "True or False"),
        ("crop_factor", 0.9, "at least 1"),
        ("crop_factor", "2", "at least 1"),
        ("crop_factor", (2.0,), "at least 1"),
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
        (
            {"rule": "boundary", "depth": 0.5},
            "depth is 0.5",
            "closer_look or paper_equation or paper_prose or centre as",
        ),
        ({"rule": "paper_prose", "crop_factor": 2}, "crop_factor is 2", "closer_look as the rule"),
        ({"rule": "centre", "least_agreement": 0.5}, "least_agreement is 0.5", "closer_look as the rule"),
    ],
)
def test_settings_that_the_rule_would_ignore_are_refused(settings: dict[str, Any], ignored: str, rules: str) -> None:
    rule = settings.get("rule", "closer_look")
    with pytest.raises(ConfigError, match=f"^{ignored}, which the rule '{rule}' has no use for: leave it out.*{rules}"):
        AMRConfig(**settings)


def test_presets_by_name() -> None:
    assert [AMRConfig.named(name) for name in get_args(Preset)] == [
        AMRConfig(),
        AMRConfig(crop_factor=None),
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
