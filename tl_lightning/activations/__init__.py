"""Activations of a frozen part of a model: computing and keeping them; ``features`` is the way in."""
