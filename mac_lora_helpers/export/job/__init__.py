"""The cloud job: the same notebooks on a rented GPU, from one script; written, submitted, fetched."""
