"""What block lists and the DNS say of us: its own greenlet group, apart from probing."""
