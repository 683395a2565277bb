"""Builders of modes: each module has ``build(job)``, and imports its framework."""
