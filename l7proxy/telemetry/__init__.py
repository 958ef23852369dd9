"""What l7proxy tells about itself: counters, the access log, the operational log."""
