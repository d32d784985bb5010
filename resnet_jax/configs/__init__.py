"""The recipes, one file each: `resnet-jax train --config=NAME`. `default` has every key, and what it means."""
