"""Training SAEs on a target's residual stream, and measuring any SAE on it."""
