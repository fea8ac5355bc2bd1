"""Retrieval metrics that treat ties honestly, and their tidy rows for one direction."""
