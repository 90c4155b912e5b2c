"""A small mail internet on loopback: DNS zones and SMTP personas in a process of its own."""
