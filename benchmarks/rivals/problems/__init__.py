"""The models of the comparison, and the networks that look at their samples."""
