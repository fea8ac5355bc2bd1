"""Many variants of one study: `fedhash-sim sweep`.

`settings` reads a sweep file, `points` makes a study of each combination of its grid, `running`
runs them, `choice` chooses on val, `tables` tells what was found.
"""
