"""One module per peer: its defaults, and the best settings that its own documentation gives."""
