"""Serving: what OpenAI's clients ask for, over HTTP."""
