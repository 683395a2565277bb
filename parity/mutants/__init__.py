"""Faults that the check must catch, and changes that it must pass: gate G6."""
