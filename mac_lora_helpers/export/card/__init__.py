"""The model card: what the run recorded, in the Hub's metadata form."""
