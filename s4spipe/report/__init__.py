"""Tables, figures and a page of a finished run, from what was written down of its cells."""
