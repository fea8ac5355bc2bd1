"""How good a model is, and what it gives away.

retrieval      metrics on codes that treat ties honestly
direction      their tidy rows for one direction
linear_probe   what can be read off the codes by a line
linkage        whose report belongs to whose image
sensitivity    what one patient can change in a clipped sum
canary         a lower bound on what one private run leaks
"""
