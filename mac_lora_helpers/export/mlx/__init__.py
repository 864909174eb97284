"""The model for mlx-lm."""
