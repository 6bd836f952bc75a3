"""Built-in attacks, one file each; found through the registry."""
