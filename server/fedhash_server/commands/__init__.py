"""Commands of `fedhash-coordinator` that have a file of their own."""
