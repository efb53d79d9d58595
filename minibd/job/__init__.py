"""What a script does around its method, split by purpose; a script imports only what it needs."""
