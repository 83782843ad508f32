"""HTTP: what Bandwidth calls, and what people and programs ask."""
