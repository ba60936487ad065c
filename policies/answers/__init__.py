"""Reading answers: options, yes and no, numbers and names, behind what a reasoning model thinks aloud."""
