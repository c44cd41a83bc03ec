"""What ``python -m olor_mm`` does; nothing of OpenMMLab is imported before a command needs it."""
