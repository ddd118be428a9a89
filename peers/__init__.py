"""Code that runs beside min_llm in an environment of its own (PyTorch, transformers) and answers on pipes."""
