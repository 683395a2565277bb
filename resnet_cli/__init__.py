"""The command ``resnet-twins``."""
