"""The cloud job: its script, the command that starts it, and the proof that it is the same run."""
