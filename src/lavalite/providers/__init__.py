"""Where capacity comes from: this machine's own resources, today.

The only room that reads NVML and /sys. Other providers (Kubernetes, Slurm, playbooks) belong here too.
"""
