"""How a network's layers are wired: which op reads which, seen by one forward pass."""

from unvanish.torch.wiring.elementwise import together, with_activations
from unvanish.torch.wiring.ops import Op, Wiring
from unvanish.torch.wiring.trace import trace

__all__ = ["Op", "Wiring", "together", "trace", "with_activations"]
