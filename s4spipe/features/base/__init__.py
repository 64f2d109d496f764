"""The common part of all features networks."""
