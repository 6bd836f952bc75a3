"""Built-in tasks, one file each; found through the registry."""
