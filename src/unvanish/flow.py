"""diagnose: the story in order. probe -> Flow -> rules -> findings -> one root cause."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from unvanish.diagnosis import Diagnosis
from unvanish.ranking import rank
from unvanish.types import Flow
from unvanish.units import AbstractRule
from unvanish.units import rules as all_rules


def diagnose(
    model: Any,
    loss_fn: Callable[..., Any] | None = None,
    batches: Iterable[Any] | None = None,
    optimizer: Any = None,
    *,
    objective: Callable[..., Any] | None = None,
    steps: int = 30,
    rules: Sequence[AbstractRule] | None = None,
) -> Diagnosis:
    r"""Find out where a network loses its gradient, why, and what to do; nothing of the user's changes.

    Two batches are probed (one backward pass each), a deep copy is trained for ``steps`` steps with a copy of the
    optimizer, and where it does not learn, levers are moved on further copies.  Per site the backward log-gain is split

    .. math:: \ln \frac{\|\partial L / \partial h_{l-1}\|}{\|\partial L / \partial h_l\|} = A_l + M_l,\qquad
              S_l = A_{ref} - A_l,\quad B_l = -A_{ref} - M_l

    into what saturation or death costs (S) and what weights below critical cost (B).

    Args:
        model: a ``torch.nn.Module``, in the mode (train or eval) and on the device you train it in.
        loss_fn: ``loss_fn(model_output, target) -> scalar tensor``. Not needed with ``objective``, nor for models
            that return their own ``.loss``.
        batches: iterable of ``(input, target)`` batches (or what ``objective`` takes), two or more of them.
            An input that is a tuple is passed as ``model(*input)``, a dict as ``model(**input)``.
        optimizer: your optimizer, or a list of those that step on this loss, each for weights of its own; without it
            Adam with learning rate 1e-3 stands in and is not judged.
        objective: ``objective(model, batch) -> scalar tensor`` for anything else. It must use the model it is given.
        steps: optimizer steps of the rehearsal; 0 looks at the first step only, and then no learning is judged.
        rules: rules to apply, with your own thresholds; default: all that are installed.

    Returns:
        The Diagnosis: ``.healthy``, ``.findings`` (root cause first), ``.flow``; print it, or ``.to_json()`` it.

    Raises:
        ValueError: for input that cannot be diagnosed; says what was expected and how to mend it.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> layers = [layer for _ in range(20) for layer in (torch.nn.Linear(16, 16), torch.nn.Sigmoid())]
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 2))
        >>> batches = [(torch.randn(32, 16), torch.randint(0, 2, (32,))) for _ in range(4)]
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> diagnose(model, torch.nn.functional.cross_entropy, batches, opt).findings[0].cause
        'initialization'

    Source: mean-field theory of deep nets (Schoenholz et al. 2017, arXiv:1611.01232, section 3).
    """
    if batches is None:
        raise ValueError(
            "diagnose was called without batches. It needs an iterable of (input, target) batches. "
            "Pass batches=[(x, y), ...] or your DataLoader."
        )
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps is {steps!r}. It must be a whole number, 0 or more. Leave it out for 30 steps.")
    _check_rules(rules)
    flow = _observe(model, loss_fn, batches, optimizer, objective, steps)
    return judge(flow, rules)


def _check_rules(rules: Sequence[AbstractRule] | None) -> None:
    wrong = [rule for rule in rules or () if not isinstance(rule, AbstractRule)]
    if wrong:
        raise ValueError(
            f"rules holds {wrong[0]!r}, which is no rule. Expected instances of AbstractRule, not classes or ids. "
            "Pass rules=[MyRule()], or leave it out for all that are installed."
        )


def judge(flow: Flow, rules: Sequence[AbstractRule] | None = None) -> Diagnosis:
    """Apply the rules to a Flow and rank what they find."""
    found = [rule.check(flow) for rule in (all_rules() if rules is None else rules)]
    return rank(flow, [finding for finding in found if finding is not None])


def _observe(model: Any, loss_fn: Any, batches: Iterable[Any], optimizer: Any, objective: Any, steps: int) -> Flow:
    """Hand over to the framework the model is of; a framework is loaded only if the user loaded it."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise ValueError(
            f"diagnose was given a {type(model).__module__}.{type(model).__name__} as model. "
            "It expects a torch.nn.Module. Pass the inner module if yours is wrapped."
        )
    from unvanish.torch.rehearsal.session import flow_of

    return flow_of(model, loss_fn, batches, optimizer, objective, steps)
