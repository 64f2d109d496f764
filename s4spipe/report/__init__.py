"""Tables and figures of a finished run, from its per-cell results alone."""
