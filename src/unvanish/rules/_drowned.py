"""A signal drowned by what is added to it and is the same for all samples: a position code, a time step, an offset."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unvanish import reading
from unvanish.rules import _flows
from unvanish.types import Flow, Moments, Site

_TOLD = 0.02  # share of the sum that still differs between samples
_BEFORE = 0.2  # of one of the terms
_KEEPS = ("normalization", "activation", "merge", "other")  # kinds that do not add a constant of their own


@dataclass(frozen=True, slots=True)
class Drowned:
    """Of ``signal`` the share ``before`` differs between samples, of the sum ``at`` only ``after``."""

    signal: Site
    at: Site
    before: float
    after: float


def drowned(flow: Flow) -> Drowned | None:
    """The first sum that samples are hardly told apart by any more, though one of its terms told them apart."""
    below = reading.below(flow.sites)
    readers = {order: site for site in reversed(flow.sites) for order in site.inputs}
    for total in flow.sites:
        if total.op != "add":
            continue
        after = _share(total) if total.forward is not None else _behind(total, readers)
        terms = [(share, term) for term in below[total.order] if (share := _share(term)) is not None]
        apart = [(share, term) for share, term in terms if share > _BEFORE]
        if after is not None and after < _TOLD and apart and len(apart) == len(terms):
            before, signal = max(apart, key=lambda pair: pair[0])
            return Drowned(signal, total, before, after)
    return None


def _behind(total: Site, readers: dict[int, Site]) -> float | None:
    """The share in what reads the sum first, where that adds nothing of its own."""
    reader = readers.get(total.order)
    return _share(reader) if reader is not None and reader.kind in _KEEPS and len(reader.inputs) == 1 else None


def _share(site: Site) -> float | None:
    return None if site.forward is None else site.forward.separation


def flow_with_code(told: float) -> Flow:
    """A layer, a position code that is added, and a normalisation after which ``told`` differs between samples."""
    base = _flows.plain(stuck=True)
    behind = (
        Site("words", "linear", "linear", 100, (512, 32), log_grad_out=0.0, forward=Moments(16384, 1.0, 0.0, 0.9)),
        Site("words:add", "add", "other", 101, (64, 8, 32), inputs=(100,), log_grad_out=0.0),
        Site("norm", "layer_norm", "normalization", 102, (64, 8, 32), inputs=(101,), log_grad_out=0.0,
             forward=Moments(16384, 1.0, 0.0, told), normalized_count=32),
    )  # fmt: skip
    return replace(base, sites=(*base.sites, *behind))
