"""prect: public CT collections into compact Zarr stores, and VoCo pre-training from them."""

__version__ = "0.1.0"
