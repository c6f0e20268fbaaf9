"""Whether stores and their manifest are whole, and mending what is not."""
