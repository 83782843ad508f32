"""Alerts: the rules of the settings, their evaluation, and the notification of people."""
