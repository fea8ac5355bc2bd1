"""What leaves a site, told by the code that sends it (`fedhash-site check --show-egress`)."""
