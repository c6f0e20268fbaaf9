"""Imported by the server that reading processes are forked from: they share what it has loaded.

The one module that works when it is imported. The server does nothing but import, and the
reader's machine code takes a third of a second to load, once here or once in each process.
"""

from __future__ import annotations

from prect.cache.reader import best_decoder

best_decoder()
