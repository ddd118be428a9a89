"""The `min-llm` command: thin. It parses, calls the library and prints; results go to standard output, everything
else to standard error."""
