"""Training in either framework: data, engines, checkpoints of a run, and the loop."""
