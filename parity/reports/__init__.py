"""What a check leaves to read."""
