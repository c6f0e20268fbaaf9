"""What is done with stores that are there: export, removal, clearing leftovers."""
