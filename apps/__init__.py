"""Experiments, a folder each: a README with the command and its result, a configuration, little code."""
