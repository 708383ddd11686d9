"""Theory at the command line: a model solved and certified, and the figures of the papers."""
