"""What a process of fedhash needs that talks to a person or runs for long, whoever runs it."""
