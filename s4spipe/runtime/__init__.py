"""Files, scratch space, processes and errors: the basis of all other packages."""
