"""The model, its adapters and its training. torch lives here, and nowhere else."""
