"""The project's benches: measured figures and the tables made of them."""
