"""LoRA adapters: their files, shared by trainer and engines, and a live model that computes with one."""
