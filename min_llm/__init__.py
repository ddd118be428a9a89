"""min_llm: read, train, post-train, quantize and serve a Llama 3-class model in JAX, with one small code base.

Importing the package does not import JAX. It only sets the XLA flags that measurement favours on this machine
(`min_llm.platform`), because XLA reads them once, when its backend starts.
"""

from typing import Any

from min_llm import platform

__version__ = "0.1.0"

platform.set_xla_flags()


def __getattr__(name: str) -> Any:
    """`min_llm.load(path_or_name)`, imported when it is asked for."""
    if name == "load":
        import importlib  # by name: an import here would be one of every room, which import this package

        return importlib.import_module("min_llm.infer.load").load
    raise AttributeError(f"module 'min_llm' has no attribute {name!r}")
