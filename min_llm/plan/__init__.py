"""What a model costs before it runs: FLOPs, memory, hardware, inference arithmetic. From specs; runs nothing."""
