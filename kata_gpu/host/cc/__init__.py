"""What changes the CC mode: backends behind one protocol (`backend.py`)."""
