"""A message explained to people in words, as a pure function of its rows and events."""
