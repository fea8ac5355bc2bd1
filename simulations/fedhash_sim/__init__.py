"""The researcher's simulator: one YAML file in, tables and plots of non-IID studies out."""
