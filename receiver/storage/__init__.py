"""The only package with SQL. Rows stay inside it; its functions take and return frozen values."""
