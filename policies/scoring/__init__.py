"""How answers to held-out questions are scored, and what is stored of them."""
