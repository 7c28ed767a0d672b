"""What is known -> tables, pictures, pages. Pure."""
