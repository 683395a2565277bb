"""A state: its names and layouts, into and out of a model."""
