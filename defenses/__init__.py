"""Built-in defenses, one file each; found through the registry."""
