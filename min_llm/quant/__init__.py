"""Quantized inference: parameters in 8 or 4 bits that bring their own product, and how much that costs."""
