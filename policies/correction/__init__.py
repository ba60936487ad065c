"""How generated questions are answered again (VIC), and what is measured beside the answer."""
