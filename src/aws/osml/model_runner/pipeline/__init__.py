"""The stages that tiles pass, their threads and their queues."""
