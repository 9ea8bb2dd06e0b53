"""Everything about NOTIFY: announcing committed jobs, and listening for them."""
