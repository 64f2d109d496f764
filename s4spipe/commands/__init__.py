"""The commands of `s4spipe`, one module each."""
