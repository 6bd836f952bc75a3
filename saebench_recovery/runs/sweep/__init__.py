"""Many runs in one command: a grid, its cells, and the engines that carry them out."""
