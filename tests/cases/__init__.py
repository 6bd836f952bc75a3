"""Plugins that break a rule of soundness, each one small, and what must be said of each."""
