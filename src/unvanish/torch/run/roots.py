"""The networks of a running program: modules it calls at top level, under the names its author gave them."""

from __future__ import annotations

import weakref

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from unvanish.torch.probe.naming import Names, names_of
from unvanish.torch.probe.scopes import clean
from unvanish.torch.run.frames import find_name, find_root


class Roots:
    """Networks and loose parameters, held weakly: a program may make and drop thousands of them.

    Every path starts with the root's name ("generator.net.0"); ``assemble`` takes it off where there is only one.
    """

    def __init__(self) -> None:
        self._begin()
        self._roots: dict[str, weakref.ref[nn.Module]] = {}
        self._loose: dict[str, weakref.ref[Tensor]] = {}
        self._kinds: dict[str, tuple[bool, bool]] = {}

    def adopt(self, module: nn.Module) -> None:
        """Make the network that ``module`` belongs to known."""
        name, root = find_root(module)
        inside = {id(part) for part in root.modules()}
        self._roots = {key: ref for key, ref in self._roots.items() if id(ref()) not in inside}
        key = self._free(name, self._roots)
        self._roots[key] = weakref.ref(root)
        self._learn(key, root)

    def adopt_leaf(self, tensor: Tensor) -> None:
        """Make a parameter that belongs to no module known."""
        name = find_name(tensor) or f"parameter{list(tensor.shape)}"
        key = self._free(name, self._loose)
        self._loose[key] = weakref.ref(tensor)
        self._parameters[id(tensor)] = key

    def refresh(self) -> None:
        """Forget what is gone: Python gives its identity to the next object."""
        self._begin()
        for key, root in self._alive().items():
            self._learn(key, root)
        self._loose = {key: ref for key, ref in self._loose.items() if ref() is not None}
        self._parameters.update({id(ref()): key for key, ref in self._loose.items()})

    def parameters(self) -> dict[str, Tensor]:
        """All parameters by full name; a shared one under its first name."""
        named: dict[str, Tensor] = {}
        for key, root in self._alive().items():
            named.update({_join(key, clean(name)): p for name, p in root.named_parameters()})
        named.update({key: tensor for key, ref in self._loose.items() if (tensor := ref()) is not None})
        return named

    def networks(self) -> list[str]:
        """Roots that have parameters."""
        return [key for key, (has_parameters, _) in self._kinds.items() if has_parameters]

    def root_of(self, name: str) -> str:
        """The root a full name belongs to; "" for a loose parameter."""
        inside = [key for key in self._kinds if name == key or name.startswith((f"{key}.", f"{key}:"))]
        return max(inside, key=len, default="")

    def common_prefix(self) -> str | None:
        """The name of the only network of the program, where it adds nothing to the names of its parts."""
        networks = self.networks()
        return networks[0] if len(networks) == 1 and self._kinds[networks[0]][1] else None

    def _begin(self) -> None:
        self._modules: dict[int, str] = {}
        self._parameters: dict[int, str] = {}
        self.names = Names(self._modules, self._parameters)

    def _alive(self) -> dict[str, nn.Module]:
        return {key: root for key, ref in self._roots.items() if (root := ref()) is not None}

    def _learn(self, key: str, root: nn.Module) -> None:
        names = names_of(root)
        self._kinds[key] = (bool(names.parameters), next(root.children(), None) is not None)
        self._modules.update({one: _join(key, path) for one, path in names.modules.items()})
        self._parameters.update({one: _join(key, path) for one, path in names.parameters.items()})

    @staticmethod
    def _free(name: str, taken: dict[str, weakref.ref[nn.Module]] | dict[str, weakref.ref[Tensor]]) -> str:
        key, number = name, 2
        while key in taken and taken[key]() is not None:
            key, number = f"{name}_{number}", number + 1
        return key


def is_loss(module: nn.Module) -> bool:
    """A criterion is no network: one of PyTorch's, or the user's own without parameters."""
    if isinstance(module, _Loss):
        return True
    named_so = type(module).__name__.lower().endswith(("loss", "criterion"))
    return named_so and next(module.parameters(), None) is None


def _join(key: str, path: str) -> str:
    return f"{key}.{path}" if path else key
