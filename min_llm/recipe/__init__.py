"""The stages of a pretraining recipe as chains of ordinary runs: extension of the context, annealing as a probe."""
