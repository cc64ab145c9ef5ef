"""What a model will take and give on this machine, from its config alone: before a byte of it is loaded. No torch."""
