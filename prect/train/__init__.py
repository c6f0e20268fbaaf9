"""Pre-training from stores: sampling, views, loading, crops, objectives, networks, the trainer."""
