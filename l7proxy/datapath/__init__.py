"""What moves the bytes of a pair: the kernel (`sockmap`), or user space where it has to."""
