"""Layers as functions: leaves (dot, embed, unembed, gather), norms, rotary embedding, attention caches, losses."""
