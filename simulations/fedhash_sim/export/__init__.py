"""A run in other tools: `fedhash-sim export`.

`history` reads curves, figures and settings of each cell off the run's tables; `to_tensorboard` and
`to_mlflow` write them. Nothing of it runs while a cell trains.
"""
