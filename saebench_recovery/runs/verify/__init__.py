"""Verification of stored runs; see `verify.verify`."""
