from pathlib import Path


def write(cfg):
    return cfg.folder
