"""What a request costs, against a reference that does the same work with less: `python -m bench`."""
