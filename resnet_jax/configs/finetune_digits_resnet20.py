r"""Fine-tuning a net that knows the ten digits: is a digit even or odd? Twenty images to learn from, 360 to test on.

  resnet-jax train --config=digits_resnet20 --workdir=runs/digits
  resnet-jax train --config=finetune_digits_resnet20 --workdir=runs/tuned --config.data.path=parity

docs/fine-tuning.md makes the folder `parity`. The last layer alone: --config.optimizer.rates="(('',0.0),('fc',1.0))".
From scratch: --config.init_from= --config.init_anew="()" --config.init_fit_channels=False. Hardware: any; 15 seconds on
2 CPU cores. Expected: 359 or 360 right, 360 with the last layer alone, 297 to 307 from scratch (this project's own
runs, three seeds each).
"""

import ml_collections

from resnet_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.batch_size = 20
    config.num_epochs = 100.0  # of one step
    config.init_from = "runs/digits"
    config.init_anew = ("fc",)  # two classes instead of ten
    config.init_fit_channels = True  # an image folder is RGB, the ten digits are grey

    config.data.name = "folder"
    config.data.mean = (0.3058, 0.3058, 0.3058)
    config.data.std = (0.3761, 0.3761, 0.3761)

    config.optimizer.learning_rate = 0.03
    config.optimizer.label_smoothing = 0.1
    config.schedule.warmup_epochs = 10.0
    config.eval_every_epochs = 50.0
    config.checkpoint_every_epochs = 100.0
    config.log_every_steps = 0
    return config
