"""`nacre-oci`: the command line of runc over Nacre's bundles, so that podman, containerd and Docker can use it as their OCI runtime."""
