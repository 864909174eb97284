"""Does every exported artefact say what the trained adapter says? From cheap to dear: tensors, scores, text."""
