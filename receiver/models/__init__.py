"""The nouns: for each a base with its fields, the table, and what the API, the CSV and the commands show."""
