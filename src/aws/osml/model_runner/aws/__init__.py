"""Clients, roles, error codes and rows of AWS, without a service's own rules."""
