"""Training: one loop for every stage, its optimizer, schedules, checkpoints, metrics and probes."""
