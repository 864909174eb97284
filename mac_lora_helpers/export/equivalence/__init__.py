"""Whether every exported artefact still says what the adapter said."""
