"""Engines: the ways in which a simulated coordinator reaches its sites."""
