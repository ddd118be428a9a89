"""Other programs' files: what they hold, read and written here without the programs themselves."""
