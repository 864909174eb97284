"""Regression runs: cases executed by papermill, their figures held against baselines that are kept in the repository.

The order of things: ``load_suite`` reads and checks everything before anything runs → ``run_cases`` → ``judge`` → the report's
four forms. A run's measurements stay in the report folder, so comparing again costs nothing.
"""
