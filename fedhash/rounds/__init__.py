"""Rounds: what the coordinator and the sites say to each other while a model is trained."""
