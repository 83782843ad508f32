"""Alerts: their rules, the evaluation, and the ways to programs and to people."""
