"""Language models: their files, tokens and rows, loading, adapters and scoring."""
