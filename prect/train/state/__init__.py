"""The state of a run on disk: checkpoints, how they are written, and how a run goes on."""
