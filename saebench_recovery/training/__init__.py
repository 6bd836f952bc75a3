"""How SAEs and the embedded model are trained."""
