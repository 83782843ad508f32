"""receiver: takes Bandwidth's message callbacks in, keeps them, and tells what became of each message."""
