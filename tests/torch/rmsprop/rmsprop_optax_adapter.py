"""A pytest plugin: optax' ``scale_by_rms`` computes with our RMSprop; in files named wrong_*, with a wrong eps."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from optax._src import base, transform

from unvanish.torch.rmsprop import RMSprop

WRONG = {"eps": 0.0}


def scale_by_rms(decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False):
    """The update is a step with learning rate 1, from zero and uphill."""

    def init(params):
        return np.int32(0), jax.tree.map(lambda p: np.full(p.shape, initial_scale, p.dtype), params)

    def one(g, v, steps):
        w = torch.zeros(g.shape, dtype=torch.from_numpy(np.array(g)).dtype)
        settings = {"rho": decay, "eps": eps + WRONG["eps"], "eps_inside": eps_in_sqrt}
        optimizer = RMSprop([w], lr=1.0, maximize=True, bias_correction=bias_correction, **settings)
        optimizer.state[w] = {"square_avg": torch.from_numpy(np.array(v)), "step": int(steps)}
        w.grad = torch.from_numpy(np.array(g))
        optimizer.step()
        return w.numpy(), optimizer.state[w]["square_avg"].numpy()

    def update(updates, state, params=None):
        del params
        steps, averages = state
        leaves, tree = jax.tree.flatten(updates)
        pairs = [
            jax.pure_callback(one, (jax.ShapeDtypeStruct(g.shape, g.dtype),) * 2, g, v, steps)
            for g, v in zip(leaves, jax.tree.leaves(averages), strict=True)
        ]
        moved, kept = zip(*pairs, strict=True)
        return jax.tree.unflatten(tree, moved), (steps + 1, jax.tree.unflatten(tree, kept))

    return base.GradientTransformation(init, update)


transform.scale_by_rms = scale_by_rms


@pytest.fixture(autouse=True)
def wrong_in_files_named_so(request):
    WRONG["eps"] = 1e-2 if "wrong_" in request.node.nodeid else 0.0
