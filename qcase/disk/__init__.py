"""File system images, read and written without root."""
