"""The same work by others, side by side."""
