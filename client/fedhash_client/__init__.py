"""The site: its data, its index, its answers."""
