"""What everything else stands on: errors, settings, hook points, splits, seeds, hashing, tables."""
