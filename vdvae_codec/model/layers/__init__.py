"""Layers of the list, a file a kind. ``model.kinds`` is their registry."""
