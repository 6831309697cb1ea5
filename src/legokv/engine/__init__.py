"""Requests become steps: jobs, their schedule, the executor, and the front door over them."""
