"""The ways in which a loss and what it is given do not fit, one file each."""

from __future__ import annotations

from unvanish.rules._mismatch.collapse import Collapsing
from unvanish.rules._mismatch.fault import AbstractMismatch, Fault
from unvanish.rules._mismatch.feeding import Feeding
from unvanish.rules._mismatch.flat import Flat
from unvanish.rules._mismatch.shapes import Shapes
from unvanish.rules._mismatch.softmaxes import Softmaxes
from unvanish.rules._mismatch.targets import Targets
from unvanish.rules._mismatch.terms import Terms
from unvanish.rules._mismatch.upwards import Upwards

__all__ = [
    "AbstractMismatch",
    "Collapsing",
    "Fault",
    "Feeding",
    "Flat",
    "Shapes",
    "Softmaxes",
    "Targets",
    "Terms",
    "Upwards",
]
