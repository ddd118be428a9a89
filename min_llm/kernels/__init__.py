"""Fast versions of single operations, each beside the plain reference it must equal.

`attention` is the registry of attention implementations; `mask` describes which keys a query sees.
"""
