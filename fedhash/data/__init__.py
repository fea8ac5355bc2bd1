"""Studies: what one exam holds, where it comes from, and how patients are split."""
