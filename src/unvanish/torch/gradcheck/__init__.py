"""Gradient checking, module by module: depth hides nothing."""

from unvanish.torch.gradcheck.check import gradcheck
from unvanish.torch.gradcheck.function import gradcheck_function
from unvanish.torch.gradcheck.results import Failure, GradientCheck, LossCheck, ModuleCheck, Skipped

__all__ = ["Failure", "GradientCheck", "LossCheck", "ModuleCheck", "Skipped", "gradcheck", "gradcheck_function"]
