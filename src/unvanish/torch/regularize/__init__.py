"""Loss terms that keep gradients alive: Pascanu's Omega, the Jacobian's norm, orthogonality."""

from unvanish.torch.regularize.jacobian import JacobianRegularizer
from unvanish.torch.regularize.omega import OmegaRegularizer
from unvanish.torch.regularize.orthogonality import SoftOrthogonality, SpectralIsometry

__all__ = ["JacobianRegularizer", "OmegaRegularizer", "SoftOrthogonality", "SpectralIsometry"]
