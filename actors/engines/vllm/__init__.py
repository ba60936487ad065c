"""The engine protocol on vLLM."""
