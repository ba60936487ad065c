"""Whether a candidate becomes the champion, and the statistics behind that."""
