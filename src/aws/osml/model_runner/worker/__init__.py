"""The process: receive messages, run handlers, renew leases, sweep, stop in order."""
