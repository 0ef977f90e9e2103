"""Before a run: what the config says without a Trainer, the plan of a run, and its memory. Nothing is trained."""
