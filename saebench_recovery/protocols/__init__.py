"""Experiments of others as data: their settings, their numbers, and where ours differ."""
