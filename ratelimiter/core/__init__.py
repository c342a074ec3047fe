"""The pure half: values in, values out. Nothing here awaits, reads a clock, opens a socket, draws a number or logs."""
