"""The stores: their format, writer, reader and build engine; what checks them and tidies up."""
