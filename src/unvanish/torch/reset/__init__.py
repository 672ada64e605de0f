"""Dead, saturated, dormant and useless units: found, and made new with the least change of what comes out."""

from unvanish.torch.reset.events import ResetEvent, ResetReport
from unvanish.torch.reset.gradients import reset_vanished_gradients_
from unvanish.torch.reset.groups import NotResettable
from unvanish.torch.reset.scores import AbstractScore, Dead, Dormant, LowUtility, Saturated, SelfNormalized
from unvanish.torch.reset.unit_reset import UnitReset

__all__ = [
    "AbstractScore",
    "Dead",
    "Dormant",
    "LowUtility",
    "NotResettable",
    "ResetEvent",
    "ResetReport",
    "Saturated",
    "SelfNormalized",
    "UnitReset",
    "reset_vanished_gradients_",
]
