"""The processes that stand in for AWS on one machine."""
