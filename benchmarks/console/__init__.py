"""The console's pages with much data, and what looking at them costs other callers."""
