"""Logs, metrics, and the removal of secrets from both."""
