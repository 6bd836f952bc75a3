"""From names to a stored result."""
