"""Regression runs: cases executed by papermill, their figures held against baselines that are kept in the repository.

``cases`` reads and checks the file of cases, ``process`` runs one, ``figures`` reads and compares, ``command`` is ``mac-lora regress``.
"""
