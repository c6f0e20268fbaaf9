"""What reading costs: prect's reader and loader against other libraries, in one run."""
