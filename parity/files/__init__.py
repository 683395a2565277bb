"""Files of weights: opened, read, written, fetched, converted."""
