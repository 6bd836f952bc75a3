"""What `saebench new` writes: a plugin of each kind that runs as it stands."""
