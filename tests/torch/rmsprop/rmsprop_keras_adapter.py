"""A pytest plugin: in Keras on PyTorch, the arithmetic of RMSprop is ours; in files named wrong_*, with a wrong eps."""

from __future__ import annotations

import pytest
from keras.src.backend.torch.optimizers import torch_rmsprop

from unvanish.torch.rmsprop import RMSprop

WRONG = {"eps": 0.0}


def step(self, grads, variables, learning_rate):
    """Of Keras' averages, momentum and parameters, by one step of ours over views of them."""
    parameters = [variable.value.detach() for variable in variables]
    ours = RMSprop(
        parameters,
        lr=float(learning_rate),
        rho=self.rho,
        eps=self.epsilon + WRONG["eps"],
        momentum=self.momentum,
        centered=self.centered,
    )
    stored = {"square_avg": self._velocities, "momentum_buffer": self._momentums, "grad_avg": self._average_gradients}
    for parameter, variable, gradient in zip(parameters, variables, grads, strict=True):
        index = self._get_variable_index(variable)
        ours.state[parameter] = {name: slots[index].value.detach() for name, slots in stored.items() if slots}
        parameter.grad = gradient.detach().to(parameter.dtype)
    ours.step()


torch_rmsprop.RMSprop._parallel_update_step = step


@pytest.fixture(autouse=True)
def wrong_in_files_named_so(request):
    WRONG["eps"] = 1e-2 if "wrong_" in request.node.nodeid else 0.0
