"""min_llm: read, train, post-train, quantize and serve a Llama 3-class model in JAX, with one small code base.

Importing the package does not import JAX. It only sets the XLA flags that measurement favours on this machine
(`min_llm.platform`), because XLA reads them once, when its backend starts.
"""

from min_llm import platform

__version__ = "0.1.0"

platform.set_xla_flags()
