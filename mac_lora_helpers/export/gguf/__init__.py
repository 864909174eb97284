"""The model for llama.cpp, Ollama and LM Studio, written by llama.cpp's own tools."""
