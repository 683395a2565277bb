"""What a run leaves: a file, and the figures made from it."""
