"""The model in llama.cpp's file format."""
