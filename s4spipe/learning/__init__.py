"""Learning a solver's table from the teacher's pairs."""
