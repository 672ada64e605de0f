"""The tests every rule gets by being a file in the folder of rules: nothing here names one."""

import dataclasses
import inspect
import math
from typing import get_args

import pytest

from unvanish.types import Finding, Flow
from unvanish.units import AbstractRule, rules
from unvanish.vocabulary import Cause

RULES = rules()
CAUSES = get_args(Cause)

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.cause)


def cases(kind):
    """One test for each Flow that a rule brings along."""
    found = [(rule, flow, f"{rule.cause}-{i}") for rule in RULES for i, flow in enumerate(getattr(rule, kind)())]
    return pytest.mark.parametrize(("rule", "flow"), [case[:2] for case in found], ids=[case[2] for case in found])


def test_there_is_one_rule_for_a_cause():
    causes = [rule.cause for rule in RULES]
    assert len(causes) == len(set(causes))


def test_every_cause_has_its_rule():
    assert {rule.cause for rule in RULES} == set(CAUSES)


@each_rule
def test_cause_title_source_and_remedies_are_there(rule):
    assert rule.cause in CAUSES
    assert rule.title.strip()
    assert "\n" not in rule.title
    assert rule.source.strip()
    assert rule.remedies
    assert all(remedy.strip() for remedy in rule.remedies)


@each_rule
def test_the_docstring_is_a_page_of_at_least_three_paragraphs(rule):
    page = inspect.cleandoc(type(rule).__doc__)
    assert len([paragraph for paragraph in page.split("\n\n") if paragraph.strip()]) >= 3


@each_rule
def test_a_rule_is_frozen_final_and_all_its_thresholds_have_defaults(rule):
    kind = type(rule)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert kind.__bases__ == (AbstractRule,)
    assert kind.__subclasses__() in ([], [kind])  # slots=True makes a second class of the same name
    missing = dataclasses.MISSING
    assert all(f.default is not missing or f.default_factory is not missing for f in dataclasses.fields(kind))


@each_rule
def test_a_rule_brings_two_healthy_and_two_sick_flows(rule):
    assert len(rule.healthy()) >= 2
    assert len(rule.sick()) >= 2


@cases("healthy")
def test_silent_on_its_healthy_flows(rule, flow):
    assert rule.check(flow) is None


@cases("sick")
def test_speaks_on_its_sick_flows(rule, flow):
    finding = rule.check(flow)
    assert isinstance(finding, Finding)
    assert finding.cause == rule.cause
    assert 0 <= finding.confidence <= 1
    assert finding.severity in ("low", "medium", "high")
    assert finding.where
    assert all(finding.where)
    assert finding.remedies
    assert finding.source
    assert_three_parts(finding.message)
    assert_readable(finding)


def assert_three_parts(message):
    """What was seen, what is normal, what to do: three sentences at least."""
    assert len([part for part in message.replace("\n", " ").split(". ") if part.strip()]) >= 3, message


def assert_readable(finding):
    assert finding.evidence
    for row in finding.evidence:
        assert row.name.strip()
        assert row.normal.strip()
        assert isinstance(row.value, int | float)
        assert not (math.isnan(row.value) and finding.cause != "non-finite"), "NaN is no proof of anything else"


@cases("sick")
def test_a_rule_is_a_pure_function_of_the_flow(rule, flow):
    before = repr(flow)
    first = rule.check(flow)
    assert repr(rule.check(flow)) == repr(first)
    assert repr(type(rule)().check(flow)) == repr(first)
    assert repr(flow) == before


@cases("sick")
def test_a_flow_read_back_from_json_gives_the_same_finding(rule, flow):
    assert repr(rule.check(Flow.from_json(flow.to_json()))) == repr(rule.check(flow))
