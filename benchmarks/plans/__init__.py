"""What is timed, and in which ways."""
