"""RMSprop that small gradients, bad gradients and slow memory do not stop."""

from unvanish.torch.rmsprop.floor import gradient_floor
from unvanish.torch.rmsprop.optimizer import RMSprop

__all__ = ["RMSprop", "gradient_floor"]
