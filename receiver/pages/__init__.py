"""The pages: what people see in a browser. They show what the operations of the query API return."""
