"""Every layout that tools write: what a file is, and the weights it stands for."""
