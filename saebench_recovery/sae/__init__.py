"""Sparse autoencoders as we read them: latents, activation functions, files."""
