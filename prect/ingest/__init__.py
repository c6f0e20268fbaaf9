"""From foreign files to one trustworthy volume: discovery, readers, checks, harmonisation."""
