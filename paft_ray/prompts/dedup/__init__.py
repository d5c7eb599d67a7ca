"""Near-duplicates: what is similar, which of similar texts to keep, and the same on Ray Data."""
