"""What generators are asked (VIG): instructions, and questions about knowledge."""
