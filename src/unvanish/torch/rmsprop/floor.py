"""How small a gradient may be before RMSprop lets it vanish."""

from __future__ import annotations

import math

from unvanish.torch.rmsprop.settings import number_in


def gradient_floor(eps: float = 1e-7, *, eps_inside: bool = True) -> float:
    r"""Size of a constant gradient that RMSprop moves by half the learning rate.

    RMSprop makes up for small gradients, but only above this size; below it the update shrinks with the gradient.

    .. math::
        \frac{g}{\sqrt{g^2 + \epsilon}} = \frac12 \;\Rightarrow\; g = \sqrt{\epsilon / 3}
        \qquad\text{or, outside of the root,}\qquad
        \frac{g}{|g| + \epsilon} = \frac12 \;\Rightarrow\; g = \epsilon

    The defaults of the libraries differ by more than four decades: Keras (1e-7, inside) 1.8e-4, optax (1e-8, inside)
    5.8e-5, timm (1e-10, inside) 5.8e-6, ``torch.optim`` (1e-8, outside) 1e-8.  A layer whose gradient is below the
    floor needs a smaller ``eps``: ``3 * g**2`` inside, ``g`` outside.

    Args:
        eps: as given to the optimizer; in units of the squared gradient if inside, else of the gradient.
        eps_inside: whether eps is added under the root.

    Returns:
        The floor, in units of the gradient.

    Raises:
        ValueError: eps is not a positive number, or eps_inside neither True nor False.

    Example:
        >>> print(f"{gradient_floor(1e-7):.1e}, {gradient_floor(1e-8, eps_inside=False):.1e}")
        1.8e-04, 1.0e-08

    Source: setting v to its steady state g^2 in Tieleman and Hinton (2012), Lecture 6.5, COURSERA: Neural Networks
    for Machine Learning.
    """
    number = number_in(eps)
    if not 0 < number < math.inf:
        raise ValueError(
            f"gradient_floor was given eps={eps!r}. Expected a positive number. To mend it: give the eps of the "
            "optimizer, for example optimizer.param_groups[0]['eps']."
        )
    if eps_inside is not True and eps_inside is not False:
        raise ValueError(
            f"gradient_floor was given eps_inside={eps_inside!r}. Expected True or False. To mend it: give the "
            "eps_inside of the optimizer, for example optimizer.param_groups[0]['eps_inside']."
        )
    return math.sqrt(number / 3) if eps_inside else number
