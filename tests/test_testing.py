"""What authors of rules are given."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from unvanish.rules.symmetry import Symmetry
from unvanish.testing import check_unit, zoo
from unvanish.units import rules


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.cause)
def test_every_rule_holds_on_its_own_cases(rule):
    check_unit(rule)


def test_a_rule_that_never_speaks_is_found_out():
    with pytest.raises(AssertionError, match="silent on its sick Flow 0"):
        check_unit(Symmetry(share=1.1))


def test_a_rule_that_always_speaks_is_found_out():
    @dataclass(frozen=True)
    class Loud(Symmetry):
        def check(self, flow):
            return Symmetry().check(Symmetry.sick()[0])

    with pytest.raises(AssertionError, match="speaks on its healthy Flow 0"):
        check_unit(Loud())


def test_the_zoo_covers_every_cause_and_health():
    causes = {case.cause for case in zoo()}
    assert causes == {None, *(rule.cause for rule in rules())}
