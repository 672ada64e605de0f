"""Two tables that are multiplied with one another, both so small that neither passes the other a gradient."""

from __future__ import annotations

from dataclasses import replace

from unvanish import reading
from unvanish.rules import _flows
from unvanish.types import Flow, Moments, Site

_FAINT = 1e-2  # rms of what an embedding puts out; usual ones have 0.1 to 1
_PRODUCTS = ("mul", "matmul")


def faint(flow: Flow) -> tuple[Site, ...]:
    """The embeddings of a product, of which a training that does not leave a constant answer's loss has made nothing."""
    if reading.improves(flow) is not False:
        return ()
    small = {s.order: s for s in flow.sites if s.kind == "embedding" and s.forward and 0 < s.forward.rms < _FAINT}
    for product in flow.sites:
        factors = tuple(small[order] for order in product.inputs if order in small)
        if product.op in _PRODUCTS and len(factors) == len(product.inputs) > 1:
            return factors
    return ()


def flow_with_factors(size: float, *, stuck: bool = True) -> Flow:
    """Matrix factorisation of users and items whose embeddings have this rms."""
    base = _flows.plain(stuck=stuck)
    tables = [
        Site(name, "embedding", "embedding", order, (64, 16), forward=Moments(1024, size, 0.0, size))
        for order, name in enumerate(("user", "item"))
    ]
    return replace(base, sites=(*tables, Site("mul", "mul", "merge", 2, (64, 16), inputs=(0, 1))))
