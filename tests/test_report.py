"""The report says what the Diagnosis holds, in the order of importance, and never turns "unknown" into a number."""

import math
import re
from dataclasses import replace

import pytest

from unvanish.diagnosis import Diagnosis
from unvanish.report.explain import index, page
from unvanish.report.picture import compare, gradient_picture
from unvanish.report.places import places
from unvanish.report.text import number, render
from unvanish.types import Evidence, Finding, Flow, LossView, Site
from unvanish.units import rules

DECADE = math.log(10)


def flow(*decades, **fields):
    """A chain of sites whose gradients are given in decades; None and infinities as they are."""
    sites = tuple(
        Site(f"net.{i}", "linear", "linear", i, (4,), log_grad_out=None if d is None else d * DECADE)
        for i, d in enumerate(decades)
    )
    return Flow(sites, (), LossView(2.3), **fields)


def finding(cause="initialization", where=("net.0",), **fields):
    given = {
        "confidence": 0.93,
        "severity": "high",
        "evidence": (Evidence("gradient lost", 38.4, "decades", "below 2"),),
        "message": "The first layer gets 1e-38 of the gradient. Expected at least 1e-2. Draw the weights at critical.",
        "remedies": ("Draw the weights with gain 1.6", "Insert LayerNorm [before tanh]"),
        "source": "Glorot & Bengio 2010",
    } | fields
    return Finding(cause, tuple(where), **given)


def report(*findings, width=100, color=False, shape=None, notes=()):
    return render(Diagnosis(findings, shape or flow(-30.0, -10.0, 0.0), notes), width=width, color=color)


def test_a_healthy_network_gets_one_line_that_says_why():
    text = render(
        Diagnosis((), flow(0.0, 0.1), notes=("gradient lost 0.3 decades of 2", "loss 2.30 -> 0.41"), learns=True)
    )
    assert text == "unvanish: the network is healthy (gradient lost 0.3 decades of 2; loss 2.30 -> 0.41)"


def test_print_writes_what_str_gives(capsys):
    diagnosis = Diagnosis((), Flow((), (), LossView(1.0)), learns=True)
    diagnosis.print()
    assert capsys.readouterr().out == f"{diagnosis}\n"


def test_where_learning_was_not_tried_nothing_is_called_healthy():
    text = render(Diagnosis((), flow(0.0, 0.1), notes=("learning was not tried",)))
    assert text == "unvanish: no fault found (learning was not tried)"


def test_a_healthy_line_does_not_hide_what_was_not_observed():
    text = render(Diagnosis((), flow(0.0, unobserved=("cell.lstm",)), learns=True))
    assert text == "unvanish: the network is healthy; not observed: cell.lstm"


def test_a_healthy_sentence_is_wrapped_at_words():
    text = render(Diagnosis((), flow(0.0), notes=("word-with-hyphens " * 12,)), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("word-with-hyphens") == 12


def test_the_headline_names_cause_place_confidence_and_severity():
    where = [f"net.{i}" for i in range(0, 46, 2)]
    headline = report(finding(where=where)).splitlines()[0]
    assert headline == "unvanish: initialization in net.0 ... net.44 (23 layers) (93% sure)"


def test_only_an_unusual_severity_is_said():
    assert report(finding(severity="low")).splitlines()[0].endswith("(93% sure, severity low)")


def test_proof_cure_source_and_where_to_learn_more_are_all_there():
    text = report(finding())
    assert "The first layer gets 1e-38 of the gradient." in text
    assert re.search(r"gradient lost +38\.4 decades +below 2", text)
    assert re.search(r"1\. Draw the weights with gain 1\.6\n +2\. Insert LayerNorm \[before tanh\]", text)
    assert "Source: Glorot & Bengio 2010" in text
    assert text.index("What to do") < text.index("Source:")
    assert text.splitlines()[-1].strip() == "Learn more: unvanish explain initialization"


def test_symptoms_are_folded_to_one_line_each_under_their_root():
    flat = (Evidence("flat units", 97.31, "%", "below 20 %"), Evidence("loss", 2.3, "", "falling"))
    symptom = finding("saturation", ("net.1", "net.3"), evidence=flat, message="Half of the units are flat. " * 20)
    lines = report(finding(symptoms=(symptom, replace(symptom, cause="depth", evidence=())))).splitlines()
    folded = lines.index("  Explained by it, to go away with it")
    assert lines[folded + 1] == "  - saturation in net.1, net.3: flat units 97.3 %"
    assert lines[folded + 2] == "  - depth in net.1, net.3"


def test_a_long_symptom_is_cut_to_its_line():
    symptom = finding("saturation", ("a.very.long.path.to.a.module",) * 3)
    lines = report(finding(symptoms=(symptom,)), width=60).splitlines()
    assert lines[lines.index("  Explained by it, to go away with it") + 1].endswith("…")


def test_other_findings_come_later_and_shorter():
    other = finding("precision", ("head",), confidence=0.6, severity="low", message="bf16 weights cannot move.")
    text = report(finding(), other)
    assert (
        text.index("What to do")
        < text.index("A fault of its own")
        < text.index("- precision in head (60% sure, severity low)")
    )
    assert "bf16 weights cannot move." in text
    assert text.count("2. Insert LayerNorm") == 1
    assert text.count("Do: Draw the weights") == 1


def test_what_was_not_observed_is_one_short_line():
    text = report(finding(), shape=flow(-30.0, 0.0, unobserved=tuple(f"fused kernel {i}" for i in range(50))))
    assert "  Not observed: fused kernel 0, fused kernel 1 and 48 more" in text.splitlines()


@pytest.mark.parametrize(
    ("decades", "seen"), [((0.0, -0.9), False), ((0.0, -1.1), True), ((0.0, -math.inf), True), ((0.0, math.nan), True)]
)
def test_the_gradient_is_drawn_where_there_is_something_to_see(decades, seen):
    assert ("log10 of the gradient norm" in report(finding(), shape=flow(*decades))) is seen


@pytest.mark.parametrize("force", [False, True])
def test_colour_only_where_asked(force, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert ("\x1b[" in report(finding(), color=force)) is force


def test_brackets_in_a_message_are_text_and_not_markup():
    assert "net[0] [bold]weights[/bold]" in report(finding(message="net[0] [bold]weights[/bold]"))


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_line_is_wider_than_asked(width):
    text = report(finding(where=["a.very.long.path.to.a.module"] * 9, symptoms=(finding("depth"),)), width=width)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("value", "shown"),
    [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf"), (None, "not observed"), (1e-300, "1e-300"), (0.0, "0")],
)
def test_only_a_zero_is_printed_as_zero(value, shown):
    assert number(value) == shown
    row = Evidence("gradient", value, "nats", "above -5")
    assert re.search(rf"gradient +{re.escape(shown)} nats", report(finding(evidence=(row,))))


def test_few_places_are_all_named():
    assert places(["a", "b", "c"]) == "a, b, c"
    assert places(["a", "b", "c", "d"]) == "a ... d (4 layers)"
    assert places(["7"]) == "layer 7"


def test_long_rows_of_like_names_are_told_apart():
    hidden = [name for i in range(9) for name in (f"hidden.{i}", f"hidden.{i}:tanh")]
    text = "hidden.0 ... hidden.8 (9 layers), hidden.0:tanh ... hidden.8:tanh (9 operations), optimizer"
    assert places([*hidden, "optimizer"]) == text
    assert places([f"layers[{i}].bias" for i in range(4)]) == "layers[0].bias ... layers[3].bias (4 parameters)"


def test_a_falling_gradient_is_drawn_with_whole_decades_at_the_axis():
    lines = gradient_picture(flow(-4.0, -2.0, 0.0), height=4, width=40).splitlines()
    assert [line[:5].strip() for line in lines[1:6]] == ["+0", "-1", "-2", "-3", "-4"]
    assert lines[1][7:] == " " * 12 + "█" * 6
    assert lines[2][7:] == " " * 12 + "█" * 6
    assert lines[3][7:] == " " * 6 + "█" * 12
    assert lines[4][7:] == "▁" * 6 + "█" * 12
    assert lines[6].split() == ["net.0", "net.2"]


def test_zero_not_observed_and_broken_look_different():
    lines = gradient_picture(flow(-1.0, -math.inf, None, math.nan, 0.0), height=1, width=13).splitlines()
    assert lines[1][7:] == "▁0 ?█"
    assert lines[-1].strip() == "0 = exactly zero   ? = NaN or Inf   gap = not observed"


def test_a_zero_is_still_seen_when_a_thousand_sites_share_few_columns():
    decades = [0.0] * 500 + [-math.inf] + [0.0] * 499
    picture = gradient_picture(flow(*decades), width=60)
    assert picture.splitlines()[-4].count("0") - picture.splitlines()[-4][:6].count("0") == 1
    assert max(map(len, picture.splitlines())) <= 60


@pytest.mark.parametrize(
    ("decades", "sentence"),
    [
        ((), "No gradient was observed at any site."),
        ((None, None), "No gradient was observed at any site."),
        ((-math.inf, None), "The gradient is exactly zero at every observed site."),
        ((math.nan, -math.inf), "The gradient is NaN or Inf at every site where it is not zero."),
    ],
)
def test_without_any_height_the_picture_is_a_sentence(decades, sentence):
    assert gradient_picture(flow(*decades)) == sentence


def test_before_and_after_share_one_axis_line_by_line():
    lines = compare(flow(-4.0, -2.0, 0.0), flow(0.0, 0.0, 0.0), height=4, width=60).splitlines()
    assert lines[0].split() == ["before", "after"]
    left, right = zip(*((line[:5].strip(), line[31:36].strip()) for line in lines[1:6]), strict=True)
    assert left == right == ("+0", "-1", "-2", "-3", "-4")
    assert lines[1].count("█") == 6 + 18
    assert compare(flow(), flow(-math.inf)) == (
        "before: No gradient was observed at any site.\nafter: The gradient is exactly zero at every observed site."
    )


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.cause)
def test_a_page_fits_its_terminal_and_keeps_its_words(rule):
    text = page(rule, width=70)
    assert max(map(len, text.splitlines())) <= 70
    assert " ".join(text.split()).count(" ".join(rule.remedies[0].split())) >= 1
    assert "Source: " in text


def test_the_list_of_causes_fits_eighty_columns():
    lines = index(rules()).splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.startswith("  ")]) == len(rules())


def test_print_shows_the_report():
    diagnosis = Diagnosis((finding(),), flow(-30.0, 0.0))
    assert str(diagnosis) == render(diagnosis)
