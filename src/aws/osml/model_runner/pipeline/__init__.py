"""The stages of a region's tiles, their threads and their queues."""
