"""Timings, peak memory and task counts, with asv or as a table beside other libraries."""
