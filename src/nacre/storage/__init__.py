"""Root file systems and volumes from layers; answers with values that every isolation level can use."""
