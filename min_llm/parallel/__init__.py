"""Many devices: the mesh, context, pipeline and expert parallelism, several processes (Llama 3 section 3.3)."""
