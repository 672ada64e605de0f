"""What is written as JSON comes back equal, is standard JSON, and anything else is refused with a reason."""

import json
import math
from dataclasses import dataclass, fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unvanish import serialize
from unvanish.diagnosis import Diagnosis
from unvanish.types import Evidence, Finding, Flow, LossView, Moments, Site

numbers = st.floats(width=64) | st.sampled_from([math.inf, -math.inf, math.nan, -0.0, 5e-324])
# from_type builds any of our dataclasses from its hints; only the schema version is not free.
st.register_type_strategy(float, numbers)
# A Flow is large: short tuples keep one example small without losing a field.
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def same(one: object, other: object) -> bool:
    """Equal, with NaN equal to NaN: repr tells every float and every type apart."""
    return type(one) is type(other) and repr(one) == repr(other)


@st.composite
def built(draw, kind):
    """An instance of a dataclass with every field drawn from its hint, and the schema of today."""
    chosen = {f.name: st.just(f.default) for f in fields(kind) if f.name == "schema"}
    return draw(st.builds(kind, **chosen))


@pytest.mark.parametrize("kind", [Moments, Site, LossView, Evidence])
def test_every_noun_survives_the_round_trip(kind):
    @quick
    @given(built(kind))
    def check(value):
        assert same(serialize.from_json(kind, serialize.to_json(value)), value)

    check()


def test_whole_numbers_where_floats_belong_are_written_as_floats():
    text = serialize.to_json(Evidence("rows", 3, "", "0"))
    assert serialize.to_json(serialize.from_json(Evidence, text)) == text
    with_none = serialize.to_json(LossView(value=1, floor=2, classes=3))
    assert serialize.to_json(serialize.from_json(LossView, with_none)) == with_none
    assert json.loads(with_none)["classes"] == 3


findings = st.recursive(
    st.builds(Finding, symptoms=st.just(())),
    lambda inner: st.builds(Finding, symptoms=st.lists(inner, max_size=2).map(tuple)),
    max_leaves=4,
)


@quick
@given(st.lists(findings, max_size=3).map(tuple), st.lists(built(Site), max_size=3).map(tuple), built(LossView))
def test_a_diagnosis_with_folded_symptoms_survives(found, sites, loss):
    diagnosis = Diagnosis(found, Flow(sites, (), loss), notes=("seen",))
    text = diagnosis.to_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not standard JSON"))
    assert same(Diagnosis.from_json(text), diagnosis)


@quick
@given(built(Flow))
def test_a_flow_with_every_field_survives(flow):
    assert same(Flow.from_json(flow.to_json()), flow)


def test_zero_not_observed_and_not_a_number_stay_three_things():
    text = Flow(
        sites=(
            Site("a", "tanh", "activation", 0, (2,), log_grad_out=-math.inf),
            Site("b", "tanh", "activation", 1, (2,), log_grad_out=None),
            Site("c", "tanh", "activation", 2, (2,), log_grad_out=math.nan),
        ),
        parameters=(),
        loss=LossView(1.0),
    ).to_json()
    zero, unseen, broken = Flow.from_json(text).sites
    assert zero.log_grad_out == -math.inf
    assert unseen.log_grad_out is None
    assert broken.log_grad_out is not None
    assert math.isnan(broken.log_grad_out)


@dataclass(frozen=True)
class Pair:
    first: tuple[int, ...]
    second: tuple[float, float] | None = None
    flag: bool = False


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", "Pair in the JSON is 'text that is no JSON"),
        ("[]", "Pair in the JSON is []"),
        ("{}", "'first'"),
        ('{"first": 3}', "Pair.first in the JSON is 3"),
        ('{"first": [1.5]}', "Pair.first[0] in the JSON is 1.5"),
        ('{"first": [true]}', "Pair.first[0] in the JSON is True"),
        ('{"first": [], "second": [1]}', "a list of 2"),
        ('{"first": [], "second": [1, "infinity"]}', "Pair.second[1]"),
        ('{"first": [], "second": [1, NaN]}', "Pair.second[1] in the JSON is nan"),
        ('{"first": [], "second": [1, 1e999]}', "Pair.second[1] in the JSON is inf"),
        ('{"first": [], "second": [1, 1' + "0" * 400 + "]}", "Pair.second[1] in the JSON is 1000"),
        ("[" * 100_000, "no JSON"),
        ('{"first": [], "flag": 1}', "true or false"),
        ('{"first": [], "third": 1}', "a field of Pair (first, second, flag)"),
    ],
)
def test_malformed_data_is_refused_with_place_expectation_and_way_out(text, where):
    with pytest.raises(ValueError, match=r"Expected .* Write the file again") as caught:
        serialize.from_json(Pair, text)
    assert where in str(caught.value)


@pytest.mark.parametrize("version", ["0", "2", "null", '"1"'])
def test_another_schema_version_is_refused(version):
    text = Flow((), (), LossView(1.0)).to_json().replace('"schema": 1', f'"schema": {version}')
    with pytest.raises(ValueError, match=r"schema version .* reads version 1.*release that wrote it"):
        Flow.from_json(text)


def test_a_literal_outside_its_values_is_refused():
    text = Flow((), (), LossView(1.0)).to_json().replace('"rehearsal"', '"dream"')
    with pytest.raises(ValueError, match=r"Flow\.origin in the JSON is 'dream'"):
        Flow.from_json(text)


def test_a_value_that_is_no_plain_number_is_not_written():
    with pytest.raises(ValueError, match="complex cannot be written"):
        serialize.to_json(Evidence("gain", 1j, "", ""))  # type: ignore[arg-type]
