"""Benchmarks against peers, one command each; results/ holds what they measured."""
