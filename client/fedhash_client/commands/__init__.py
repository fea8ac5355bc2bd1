"""Commands of `fedhash-site` that have a file of their own."""
