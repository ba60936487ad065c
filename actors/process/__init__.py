"""What an actor settles with the machine that its process runs on."""
