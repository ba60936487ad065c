"""What things cost: time, memory, disk."""
