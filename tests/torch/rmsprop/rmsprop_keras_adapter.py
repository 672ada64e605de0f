"""A pytest plugin: Keras' RMSprop does its update with ours, in Keras on PyTorch."""

from __future__ import annotations

import os

import keras
import torch
from keras.src.optimizers import optimizer, rmsprop

from unvanish.torch.rmsprop import RMSprop as Ours


class RMSprop(rmsprop.RMSprop):
    """The interface is Keras', the arithmetic is ours: averages, momentum and parameter after each step."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable, learning_rate)

    def update_step(self, gradient, variable, learning_rate):
        parameter = variable.value.detach()
        wrong = os.environ.get("UNVANISH_WRONG") == "eps"
        ours = Ours(
            [parameter],
            lr=float(learning_rate),
            rho=self.rho,
            eps=1e-2 if wrong else self.epsilon,
            momentum=self.momentum,
            centered=self.centered,
        )
        index = self._get_variable_index(variable)
        stored = {"square_avg": self._velocities, "momentum_buffer": self._momentums, "grad_avg": self._average_gradients}
        ours.state[parameter] = {name: slots[index].value.detach() for name, slots in stored.items() if slots}
        parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype).detach()
        ours.step()


RMSprop.__module__, RMSprop.__qualname__ = "keras.src.optimizers.rmsprop", "RMSprop"
optimizer.Optimizer  # noqa: B018 - imported first: its backend class is a base of RMSprop
rmsprop.RMSprop = RMSprop
keras.src.optimizers.RMSprop = RMSprop
keras.optimizers.RMSprop = RMSprop
keras.src.optimizers.ALL_OBJECTS_DICT["rmsprop"] = RMSprop
