"""What the command lines of both tasks share: settings, flags, the main programs' frame."""
