"""The coordinator: enrols sites, launches rounds, keeps releases."""
