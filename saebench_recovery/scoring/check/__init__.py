"""Checks of the plugins before anything is scored: each names what is wrong, and the remedy."""
