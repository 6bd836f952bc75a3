"""How the embedded model is built."""
