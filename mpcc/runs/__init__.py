"""The folder of one trial: its records, their seals and their repair. Without torch."""
