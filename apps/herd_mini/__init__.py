"""The pretraining recipe of Llama 3 on a small model, from raw text to a report."""
