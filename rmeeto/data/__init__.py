"""What data sets of both tasks share: which samples, in which order, loaded and augmented how."""
