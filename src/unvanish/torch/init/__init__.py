"""Initialisation: the field's four methods with the right fans, and weights that let plain deep networks train."""

from unvanish.torch.init.automatic import initialize_, mirrored_, operating_point_
from unvanish.torch.init.classic import he_, orthogonal_, xavier_
from unvanish.torch.init.gates import chrono_
from unvanish.torch.init.lsuv import lsuv_
from unvanish.torch.init.rate import learning_rate
from unvanish.torch.init.result import Action, Initialization, Vitals

__all__ = [
    "Action",
    "Initialization",
    "Vitals",
    "chrono_",
    "he_",
    "initialize_",
    "learning_rate",
    "lsuv_",
    "mirrored_",
    "operating_point_",
    "orthogonal_",
    "xavier_",
]
