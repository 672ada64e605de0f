"""unvanish finds which layer of a deep network loses the gradient, and why, and what cures it."""

from unvanish.types import Diagnosis, Finding, Flow

__version__ = "0.1.0"
__all__ = ["Diagnosis", "Finding", "Flow", "__version__"]
