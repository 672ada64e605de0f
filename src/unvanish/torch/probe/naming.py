"""Names for sites as the user knows them: the module's path, or for a functional op the place it stands at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from unvanish.torch.probe.by_id import ById
from unvanish.torch.probe.graph import Graph, Vertex
from unvanish.torch.probe.scopes import Call, Scopes, clean

_LISTS = (nn.ParameterList, nn.ParameterDict)
_PARAMETRIZED = ".parametrizations."  # what torch.nn.utils.parametrize puts between a layer and its weight
_FEW = 64  # names that take little memory even in a dictionary


@dataclass(frozen=True, slots=True)
class Names:
    """id(module) -> path and id(parameter) -> name, as the user knows them."""

    modules: Mapping[int, str]
    parameters: Mapping[int, str]


def names_of(model: nn.Module) -> Names:
    """Names of all modules and parameters of a model; shared ones under their first name."""
    modules: dict[int, str] = {}
    parameters: dict[int, str] = {}
    _name(model, "", modules, parameters)
    return Names(_packed(modules), _packed(parameters))


def _packed(names: dict[int, str]) -> Mapping[int, str]:
    """In less memory, which takes more time, where the memory is worth it."""
    return ById(names) if len(names) > _FEW else names


def _name(module: nn.Module, name: str, modules: dict[int, str], parameters: dict[int, str]) -> None:
    """Name a module and all below it; ``name`` is its path to PyTorch.

    In the order of ``named_modules``, whose generators inside of generators take longer than all the rest.
    """
    path = clean(name)
    if not isinstance(module, _LISTS):  # these are never called: their weights have names of their own
        modules[id(module)] = path
    for short, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in parameters:
            parameters[id(parameter)] = f"{path}.{short}" if path else short
    if module._modules:
        prefix = f"{name}." if name else ""
        for short, below in module._modules.items():
            if below is not None and id(below) not in modules:
                _name(below, prefix + short, modules, parameters)


@dataclass(frozen=True, slots=True)
class Named:
    """What the vertices of a graph are called, by index: columns, for thousands of rows would take memory.

    ``calls`` = which call of its path this is, where it is not the first; ``parameters`` the weight it uses;
    ``outside`` those that stand outside the network.
    """

    paths: list[str]
    calls: dict[int, int]
    parameters: list[str | None]
    outside: set[int]


def name_vertices(graph: Graph, scopes: Scopes, names: Names) -> Named:
    """Turn owners (module calls) and weights into names."""
    vertices = graph.vertices
    owners = scopes.owners([vertex.number for vertex in vertices])
    loss_from = max((call.end or 0 for call in scopes.calls if call.level == 0), default=0)
    namer = _Namer(names)
    parameters = [namer.weight(vertex.parameters) if vertex.parameters else None for vertex in vertices]
    paths = namer.paths
    for vertex, owner, parameter in zip(vertices, owners, parameters, strict=True):
        paths.append(namer.path(vertex, owner, parameter))
    strangers = (vertex for vertex, owner in zip(vertices, owners, strict=True) if owner is None)
    outside = {vertex.index for vertex in strangers if vertex.number >= loss_from > 0}
    return Named(paths, _calls(vertices, paths), parameters, outside)


def _calls(vertices: list[Vertex], paths: list[str]) -> dict[int, int]:
    """How many visible vertices of its op and path come before each, where there are any."""
    seen: dict[str, dict[str, int]] = {}  # op -> path -> how many so far
    calls: dict[int, int] = {}
    for vertex, path in zip(vertices, paths, strict=True):
        counts = seen.setdefault(vertex.op, {})
        call = counts.get(path, 0)
        if call:
            calls[vertex.index] = call
        if not vertex.hidden:
            counts[path] = call + 1
    return calls


class _Namer:
    """Names one vertex after the other, in forward order."""

    def __init__(self, names: Names) -> None:
        self.paths: list[str] = []  # of the vertices so far
        self._names = names
        self._many: dict[int, bool] = {}

    @cached_property
    def _modules(self) -> set[str]:
        """Paths of all modules."""
        return set(self._names.modules.values())

    def weight(self, parameters: tuple[Tensor, ...]) -> str | None:
        """Name of the weight: the first parameter that is a matrix and no bias, else the first."""
        first, name_of = None, self._names.parameters.get
        for parameter in parameters:
            name = name_of(id(parameter))
            if name is not None and parameter.dim() > 1 and not name.endswith("bias"):
                return name
            first = first or name
        return first

    def path(self, vertex: Vertex, owner: Call | None, parameter: str | None) -> str:
        weighs = parameter is not None and vertex.kind in ("linear", "convolution", "embedding", "normalization")
        if owner is not None and not owner.parent and owner.name and not (weighs and self._holds_many(owner)):
            return owner.name
        if parameter is not None and weighs:
            module = parameter.rpartition(".")[0].partition(_PARAMETRIZED)[0]
            return module if module and module in self._modules else parameter
        if vertex.hidden or vertex.kind in ("activation", "softmax", "other"):
            paths = self.paths
            near = next((paths[below.index] for below in vertex.below if paths[below.index]), "")
            if vertex.hidden:
                return near
            if near:
                return f"{near.partition(':')[0]}:{vertex.op}"
        inside = owner.name if owner is not None else ""
        return f"{inside}:{vertex.op}" if inside else vertex.op

    def _holds_many(self, owner: Call) -> bool:
        """Is it a whole network whose matrices are its own, or in lists, so that its name tells nothing?"""
        if owner.level:
            return False
        known = self._many.get(id(owner))
        if known is None:
            known = self._many[id(owner)] = sum(p.dim() > 1 for p in owner.module.parameters()) > 1
        return known
