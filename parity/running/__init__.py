"""One network run and watched."""
