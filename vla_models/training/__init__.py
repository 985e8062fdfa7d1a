"""Framework ``local``: the embedded trainer, complete in one process on a CPU."""
