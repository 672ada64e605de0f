"""For authors of rules: a check of a rule on its own cases, and the zoo of sick and healthy programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unvanish.types import Finding
from unvanish.units import AbstractRule

if TYPE_CHECKING:
    from unvanish.torch.zoo._case import Case


def check_unit(rule: AbstractRule) -> None:
    """Run a rule on its own Flows: it must speak on every sick one and be silent on every healthy one.

    Args:
        rule: an instance of the rule, with the thresholds to be checked.

    Raises:
        AssertionError: names the first Flow on which the rule is wrong.

    Example:
        >>> from unvanish.rules.symmetry import Symmetry
        >>> check_unit(Symmetry())
    """
    assert rule.sick(), f"{type(rule).__name__} has no sick Flow"
    assert rule.healthy(), f"{type(rule).__name__} has no healthy Flow"
    for index, flow in enumerate(rule.sick()):
        finding = rule.check(flow)
        assert isinstance(finding, Finding), f"{type(rule).__name__} is silent on its sick Flow {index}"
        assert finding.cause == rule.cause, f"{type(rule).__name__} says {finding.cause}, not {rule.cause}"
    for index, flow in enumerate(rule.healthy()):
        assert rule.check(flow) is None, f"{type(rule).__name__} speaks on its healthy Flow {index}"


def zoo() -> tuple[Case, ...]:
    """All programs of the zoo, sick and healthy, each built by ``case.build(seed)``; loads PyTorch."""
    from unvanish.torch.zoo import cases

    return cases()
