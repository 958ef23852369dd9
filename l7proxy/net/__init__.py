"""The edge to the kernel's TCP and to the process's rights: listeners, dialing, TCP_INFO."""
