"""A pytest plugin: optax' ``scale_by_rms`` computes with our RMSprop."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from optax._src import base, transform

from unvanish.torch.rmsprop import RMSprop


def scale_by_rms(decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False):
    """The update of a step with learning rate 1, from zero and uphill."""
    settings = {"rho": decay, "eps": 1e-2 if os.environ.get("UNVANISH_WRONG") else eps, "eps_inside": eps_in_sqrt}

    def init(params):
        return 0, jax.tree.map(lambda p: np.full(p.shape, initial_scale, p.dtype), params)

    def update(updates, state, params=None):
        del params
        leaves, tree = jax.tree.flatten(updates)
        steps, averages = state
        results, kept = [], []
        for leaf, average in zip(leaves, jax.tree.leaves(averages), strict=True):
            w = torch.zeros(leaf.shape, dtype=torch.float32)
            optimizer = RMSprop([w], lr=1.0, maximize=True, bias_correction=bias_correction, **settings)
            optimizer.state[w] = {"square_avg": torch.tensor(average), "step": steps}
            w.grad = torch.tensor(np.asarray(leaf))
            optimizer.step()
            results.append(jnp.asarray(w.numpy()))
            kept.append(optimizer.state[w]["square_avg"].numpy())
        return jax.tree.unflatten(tree, results), (steps + 1, jax.tree.unflatten(tree, kept))

    return base.GradientTransformation(init, update)


transform.scale_by_rms = scale_by_rms
optax.scale_by_rms = scale_by_rms
