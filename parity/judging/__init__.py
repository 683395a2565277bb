"""Distance, tolerance, gate, verdict."""
