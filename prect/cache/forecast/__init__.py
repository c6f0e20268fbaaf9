"""What a whole build will take, from trial builds of a sample."""
