"""A transformers model as we run it: hook points, batches, the tail forward, the meter."""
