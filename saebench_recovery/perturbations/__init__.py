"""What an attack may change, and what that costs in drift."""
