"""unvanish finds which layer of a deep network loses the gradient, and why, and what cures it.

>>> import unvanish
>>> flow = unvanish.Flow(sites=(), parameters=(), loss=unvanish.types.LossView(0.0))
>>> print(unvanish.Diagnosis(findings=(), flow=flow, learns=True))
unvanish: the network is healthy
"""

from unvanish.diagnosis import Diagnosis
from unvanish.flow import diagnose
from unvanish.types import Finding, Flow

__version__ = "0.1.0"
__all__ = ["Diagnosis", "Finding", "Flow", "__version__", "diagnose"]
