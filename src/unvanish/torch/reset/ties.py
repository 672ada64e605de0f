r"""Weights with several uses: which units can be reset all the same, and how.

Let the rows :math:`w_j` make unit j, and the weights :math:`v_{kj}` read it.

- **Shared blocks** (a Siamese network, a Transformer layer applied several times): :math:`w` makes the same units in
  each call, and all that reads them are calls of the same layers.  A unit is judged by all calls together, and its
  reset is that of a layer with one call.
- **The weights that read it have another use** (the output layer shares the embedding's weight; a decoder is the
  transpose of its encoder, :math:`v_{kj} = w_{jk}`): they cannot be zero, for :math:`v_j = 0` would take an entry of
  every embedding, or be :math:`w_j = 0`, with which the unit stays without a gradient for ever.  So they stay (or are
  the new :math:`w_j` itself), the bias takes over what the old unit gave, and the new one is heard at once.  It begins
  at a tenth of its size: what it gives is then a tenth of a usual unit's, in a tied autoencoder a hundredth, and the
  change of the output is measured.
- **The weights that make it have another use**: as another unit's weights, as an embedding, or as weights that read
  these same units in the next step of a loop (:math:`h_j` is read by column j, which reads input j in the first step).
  New :math:`w_j` would change what works elsewhere.  Such units are judged, and what is found stands in the event log
  with the reason, but they are left alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch

from unvanish.torch.reset.groups import Reader
from unvanish.torch.reset.search import Found


def calls_of(calls: list[Found]) -> dict[str, set[int]]:
    """For each parameter that makes these units, normalises or reads them, the calls that do so with it."""
    ours: dict[str, set[int]] = defaultdict(set)
    for call in calls:
        for name in (call.plan.weight, call.plan.bias):
            if name is not None:
                ours[name].add(call.op.index)
        for norm in call.norms:
            for _, name in norm.parameters:
                ours[name].add(norm.op)
        for reader in call.readers:
            ours[reader.plan.weight].add(reader.op)
    return dict(ours)


def forbidden(calls: list[Found], uses: Counter[str]) -> list[str]:
    """Why ties keep the units that these calls of one layer make from being reset.

    Args:
        calls: of one layer.
        uses: how many calls of the whole pass use each parameter.
    """
    plan = calls[0].plan
    readers = [reader for call in calls for reader in call.readers]
    read = {reader.plan.weight for reader in readers} - {plan.weight}
    whys = [
        f"{name} is used {uses[name]} times (tied, or a shared layer)"
        for name, ours in calls_of(calls).items()
        if uses[name] > len(ours) and name not in read
    ]
    if any(call.plan != plan for call in calls):
        whys.append(f"{plan.weight} makes units in different ways")
    if any(reader.plan.weight == plan.weight and not _mirrored(reader, calls) for reader in readers):
        whys.append(f"{plan.weight} makes them and reads them again, in a loop (tied, or a shared layer)")
    whys += [f"{weight} reads them in different orders" for weight in sorted(read) if not _in_order(weight, readers)]
    return whys


def readers_of(calls: list[Found], uses: Counter[str]) -> tuple[Reader, ...]:
    """The readers, with what their other uses forbid."""
    readers = [reader for call in calls for reader in call.readers]
    weights = Counter(reader.plan.weight for reader in readers)
    biases = Counter(reader.plan.bias for reader in readers)
    return tuple(
        replace(
            reader,
            kept=uses[reader.plan.weight] > weights[reader.plan.weight],
            takes_over=reader.plan.bias is None or uses[reader.plan.bias] == biases[reader.plan.bias],
        )
        for reader in readers
    )


def _mirrored(reader: Reader, calls: list[Found]) -> bool:
    """Does it read unit j by the very row that makes unit j, as a tied decoder does?"""
    return reader.plan.out_axis != calls[0].plan.out_axis and reader.plan.groups == 1 and reader.features.plain


def _in_order(weight: str, readers: Iterable[Reader]) -> bool:
    orders = [reader.features.owners for reader in readers if reader.plan.weight == weight]
    return all(torch.equal(order, orders[0]) for order in orders)
