"""The only place with SQL. Rows stay in here; frozen values go in and out."""
