"""Small words for messages: counts with their plural, ratios as a person says them."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it has to be.

    >>> count(1, "layer"), count(31, "layer")
    ('1 layer', '31 layers')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


FOR_THE_DEPTH = (
    "unvanish.torch.init.initialize_(model, inputs) sets weights made for the depth; train with learning_rate(model, inputs) of "
    "the same module, and for activations that have a mean (sigmoid) with unvanish.torch.centered.CenteredUpdates(optimizer)"
)


def times(factor: float) -> str:
    """A factor in two digits, as a person writes it.

    >>> times(6.11), times(238.4), times(3.13e7)
    ('6.1', '240', '3.1e+07')
    """
    return f"{float(f'{factor:.2g}'):.0f}" if 10 <= factor < 1e5 else f"{factor:.2g}"


def share(ratio: float) -> str:
    """How much of something, in percent, or as a multiple where it is far above all of it.

    >>> share(0.0123), share(6e-8), share(32.14), share(0.0)
    ('1.2 % of', '6e-06 % of', '32 times', '0 % of')
    """
    return f"{ratio:.2g} times" if ratio >= 2 else f"{100 * ratio:.2g} % of"
