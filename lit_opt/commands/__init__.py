"""The verbs of the command `lit-opt`, imported only when they are called."""
