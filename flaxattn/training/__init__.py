"""Training: from prepared batches to the parameters worth keeping."""
