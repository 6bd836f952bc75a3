"""One door to a model with its SAEs."""
