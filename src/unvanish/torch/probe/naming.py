"""Names for sites as the user knows them: the module's path, or for a functional op the place it stands at."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from unvanish.torch.probe.graph import Graph, Vertex
from unvanish.torch.probe.scopes import Call, Scopes, clean


@dataclass(frozen=True, slots=True)
class Names:
    """id(module) -> path and id(parameter) -> name, as the user knows them."""

    modules: dict[int, str]
    parameters: dict[int, str]


def names_of(model: nn.Module) -> Names:
    """Names of all modules and parameters of a model; shared ones under their first name."""
    modules = {id(module): clean(name) for name, module in model.named_modules()}
    parameters = {id(parameter): clean(name) for name, parameter in model.named_parameters()}
    return Names(modules, parameters)


class SiteName(NamedTuple):
    """Path of a site, which call of it this is, the weight it uses, and whether it stands outside the network."""

    path: str
    call: int
    parameter: str | None
    loss: bool


class Namer:
    """Turns owners (module calls) and weights into names."""

    def __init__(self, scopes: Scopes, names: Names) -> None:
        self._modules = set(names.modules.values())
        self._parameters = names.parameters
        self._loss_from = max((call.end or 0 for call in scopes.calls if call.level == 0), default=0)
        self._calls: dict[tuple[str, str], int] = defaultdict(int)

    def names(self, graph: Graph, owners: list[Call | None]) -> list[SiteName]:
        """One name per vertex, in forward order."""
        paths: dict[int, str] = {}
        named = []
        for vertex, owner in zip(graph.vertices, owners, strict=True):
            parameter = self._weight(vertex)
            path = paths[id(vertex)] = self._path(vertex, owner, parameter, paths)
            call = self._calls[path, vertex.op]
            self._calls[path, vertex.op] += not vertex.hidden
            outside = owner is None and vertex.number >= self._loss_from > 0
            named.append(SiteName(path, call, parameter, outside))
        return named

    def _weight(self, vertex: Vertex) -> str | None:
        """Name of the weight: the first parameter with more than one axis, else the first."""
        known = [self._parameters[p] for p in vertex.parameters if p in self._parameters]
        return next((name for name in known if not name.endswith("bias")), known[0] if known else None)

    def _path(self, vertex: Vertex, owner: Call | None, parameter: str | None, paths: dict[int, str]) -> str:
        if owner is not None and not owner.parent and owner.name:
            return owner.name
        if parameter is not None and vertex.kind in ("linear", "convolution", "embedding", "normalization"):
            module = parameter.rpartition(".")[0]
            return module if module in self._modules and module else parameter
        if vertex.hidden or vertex.kind in ("activation", "softmax", "other"):
            near = next((paths[id(below)] for _, below in vertex.data if paths[id(below)]), "")
            if vertex.hidden:
                return near
            if near:
                return f"{near.partition(':')[0]}:{vertex.op}"
        inside = owner.name if owner is not None else ""
        return f"{inside}:{vertex.op}" if inside else vertex.op
