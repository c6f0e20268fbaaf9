"""What keeps a run from harm: signals, steps that are not finite, processes that stall."""
