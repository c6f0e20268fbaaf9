"""What is known about the data: tables of sources and stores, and the split by patient."""
