"""Centred updates: an optimizer that moves each unit's weights without moving their mean."""

from unvanish.torch.centered.updates import CenteredUpdates

__all__ = ["CenteredUpdates"]
