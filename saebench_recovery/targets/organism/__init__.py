"""The embedded model's invented world, and its weights."""
