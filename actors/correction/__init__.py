"""VIC on an engine: sentence by sentence, grounded, short answers, premises."""
