"""The stores: their format, writer, reader and build engine."""
