"""One module per peer, with its defaults and the best settings of its documentation."""
