"""The life of a job: each state change, from acceptance to the terminal status."""
