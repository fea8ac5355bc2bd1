"""The loss, the training at a site and the optimisers at the coordinator."""
