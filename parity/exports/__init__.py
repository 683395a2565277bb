"""Programs that run without this project: written from a state, and loaded again."""
