"""What the Makefile and CI run: environments, acceptance parts, evidence, tables of the documents."""
