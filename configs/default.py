"""Every key of an experiment, with its unit and meaning. Other configs are this one plus their differences.

  python train.py --config=configs/default.py --workdir=DIR

As it stands it trains ResNet-20 on the embedded digits; see digits_resnet20.py for what to expect.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.seed = 0  # of the parameters, of the order of the examples and of their augmentation
    config.batch_size = 64  # images a step, over all devices
    config.num_epochs = 30.0  # passes over the training split; an epoch is num_examples // batch_size steps
    # Start from these weights: a workdir, a file (.safetensors, .pth), published ones by tag (resnet50.a1_in1k), ...
    config.init_from = ""
    config.init_anew = ()  # modules of which nothing is taken from there: ("fc",) for a new head, of other classes
    config.init_fit_channels = False  # True: the first convolution is fitted to images of other channels (timm's rule)
    config.init_ema = True  # of a run that kept a moving average (config.ema), take that; False: its last variables

    # How the step is spread over devices: "pmap" (one host), "jit" (over shard_map; any number of hosts), or "auto":
    # the first that will do. Same numbers.
    config.parallel = "auto"
    config.batch_norm_devices = 1  # that share batch statistics: 1: each its own; 4: groups of four; 0: all
    # Parts that each device works its share of the batch through, in the memory of one; batch norm sees one at a time.
    config.accumulate_steps = 1

    config.model = ml_collections.ConfigDict()
    config.model.name = "cifar_resnet20"  # resnet_jax.list_models()
    config.model.num_classes = 0  # 0: as many as the data set has
    # Further fields of resnet_jax.ResNet; None leaves the network its own.
    config.model.kwargs = ml_collections.ConfigDict()
    config.model.kwargs.norm = placeholder(str)  # "batch", "batch_unbiased" (PyTorch's running variance), "group"
    config.model.kwargs.zero_init_residual = placeholder(bool)  # last norm scale of each block starts at 0
    config.model.kwargs.fc_init_std = placeholder(float)  # fc starts from a zero-mean Gaussian; None: PyTorch's uniform
    config.model.kwargs.drop_rate = placeholder(float)  # dropout before the classifier
    config.model.kwargs.drop_path_rate = placeholder(float)  # stochastic depth of the last block
    config.model.kwargs.drop_block_rate = placeholder(float)  # DropBlock in the last two stages
    config.model.kwargs.remat = placeholder(str)  # "block", "narrow", "conv": less memory, more computation
    config.model.kwargs.dtype = "float32"  # of the computation: "float32", "bfloat16", "float64"
    config.model.kwargs.param_dtype = "float32"  # of the parameters

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"  # "digits", "folder", "synthetic", "imagenet2012", "cifar10", "cifar100", "tfds:NAME"
    config.data.path = ""  # of an image folder or a zip of one: PATH/{train,test}/CLASS/*.jpg
    config.data.data_dir = ""  # where TFDS keeps prepared data; "": ~/tensorflow_datasets
    config.data.num_examples = 1024  # "synthetic" only: size of each split
    config.data.held_out = 0  # so many training images, the last ones, are tested on instead of the test split
    config.data.image_size = 8  # pixels, height and width
    # Smaller training images at the start: sizes that rise to image_size, and the epoch up to which each is in use.
    config.data.early_sizes = ()  # pixels
    config.data.early_until = ()  # epochs from the start of the run
    config.data.eval_size = 0  # pixels of the centre crop of evaluation; 0: image_size
    config.data.eval_resize = 0  # pixels of the shorter side before that crop; 0: those of the crop
    config.data.eval_interpolation = "bilinear"  # of that resizing; "bicubic" as in timm's recipes
    config.data.mean = (0.3058,)  # of each channel of the training split, in units of full scale
    config.data.std = (0.3761,)  # likewise, over all pixels
    config.data.crop = "pad"  # "pad" and crop, "resized" (random-resized), "none"
    config.data.crop_scale = (0.08, 1.0)  # "resized" only: least and greatest share of the image's area
    config.data.decoder = "auto"  # of "resized": "opencv", "pillow", or "auto": the first where it is installed
    config.data.padding = 1  # pixels of mean colour on each side, before the random crop
    config.data.flip = False  # mirror half of the images
    # What follows crop and flip: "none", "trivial" (TrivialAugment), "rand" (RandAugment), "auto", "auto_cifar10"
    # (AutoAugment) as in torchvision, or timm's RandAugment in its notation: "rand-m7-mstd0.5-inc1".
    config.data.augment = "none"
    config.data.augment_ops = placeholder(int)  # "rand" only: operators on each image; None: 2
    config.data.augment_magnitude = placeholder(int)  # "rand" only: 0..30; None: 9
    # Of its geometric operators: "nearest", "bilinear", "bicubic", "random" (one of the last two for each). None:
    # "nearest", torchvision's default (its training script has "bilinear"), or timm's, "random".
    config.data.augment_interpolation = placeholder(str)
    # Outside the image: "black" or "mean". None: "black", or timm's, "mean".
    config.data.augment_fill = placeholder(str)
    config.data.color_jitter = (0.0, 0.0, 0.0, 0.0)  # strengths of brightness, contrast, saturation, hue (0.5: any)
    config.data.erase = 0.0  # probability that a window is painted over with the mean colour
    config.data.erase_noise = False  # with noise of the data's mean and std instead
    config.data.repeats = 1  # of each example, augmented differently; an epoch then has 1 / repeats of the examples
    config.data.on_error = "refuse"  # an unreadable image: "refuse" to go on, or "skip" it, counted
    config.data.max_unreadable = 0.001  # "skip" only: share of the images from which on the run stops all the same
    config.data.fingerprint = ""  # of the data, as config.json of a run has it; others are refused. "": any
    config.data.num_threads = 4  # that read and augment
    config.data.num_workers = 0  # processes that do so instead, for hosts with tens of cores

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # "sgd" and "adamw" as PyTorch's, "lamb" as timm's
    config.optimizer.learning_rate = 0.1  # its highest value
    config.optimizer.momentum = 0.9  # "sgd" only
    config.optimizer.nesterov = True  # "sgd" only
    config.optimizer.betas = (0.9, 0.999)  # "adamw" and "lamb" only
    config.optimizer.eps = 1e-8  # "adamw" and "lamb" only; timm's Lamb has 1e-6
    config.optimizer.weight_decay = 5e-4  # "sgd": added to the gradient (L2); "adamw", "lamb": to the update
    config.optimizer.decayed = "all"  # as PyTorch by itself; "not_norm": all but norms; "kernels": no bias, either
    config.optimizer.clip_norm = 0.0  # gradients are scaled down to this norm over all tensors; 0: never
    # Factors on the rate by parts of the net; (("", 0.0), ("fc", 1.0)) freezes everything but fc. A part is a prefix of
    # PyTorch's dotted names ("layer1", "layer1.0"), and the longest one counts. 0 is frozen: no gradient, no decay, no
    # memory of the optimiser, and batch norms there use their running statistics and leave them as they are.
    config.optimizer.rates = ()
    config.optimizer.layer_decay = 1.0  # factor on the rate for each block from the head back to the stem, as timm's
    config.optimizer.label_smoothing = 0.0  # probability taken from the true class

    config.schedule = ml_collections.ConfigDict()
    config.schedule.name = "cosine"  # "cosine", "linear" (down to the end), "step", "constant"
    config.schedule.per_epoch = False  # True: the rate changes at the start of each epoch, and no step between
    config.schedule.warmup_epochs = 1.0  # linear
    # Share of the rate in the very first step, as PyTorch's LinearLR has it; None: that of one step of the warm-up.
    config.schedule.warmup_start = placeholder(float)
    config.schedule.under_warmup = (
        False  # "cosine", "linear"; True: it falls from the start, unseen under the warm-up (timm)
    )
    config.schedule.final_rate = 0.0  # "cosine" and "linear": where it ends
    config.schedule.boundaries = (0.0,)  # "step" only: epochs after which the rate is multiplied by `factor`
    config.schedule.factor = 0.1  # "step" only

    config.loss = ml_collections.ConfigDict()
    config.loss.name = "softmax"  # cross-entropy; "bce": each class a yes or no of its own
    config.loss.target_threshold = placeholder(float)  # "bce" only: targets above it are 1, the others 0; None: as is
    config.loss.sum_classes = False  # "bce" only: the sum over the classes instead of their mean
    # Factors on the classes' terms of the training loss, by number; None: none. The mean is over images, not weights.
    config.loss.class_weights = placeholder(tuple)

    # Mixing of images and labels in each step, rows 0 and 1, 2 and 3, ...; with both, each has an even chance. The
    # training accuracy is then that of the label with the larger share.
    config.mix = ml_collections.ConfigDict()
    config.mix.mixup = 0.0  # alpha of its Beta distribution; 0: off
    config.mix.cutmix = 0.0  # likewise
    config.mix.prob = 1.0  # share of the steps that mix

    # A moving average of parameters and batch statistics, which is then what is evaluated, as torchvision keeps it.
    config.ema = ml_collections.ConfigDict()
    config.ema.decay = 0.0  # share of the average that an update leaves; 0: no average
    config.ema.every_steps = 1  # steps to an update, counted from the start of each epoch
    config.ema.copy_epochs = 0.0  # at the start, in which updates copy instead: the warm-up

    config.log_every_steps = 20  # 0: at evaluations and checkpoints only
    config.eval_every_epochs = 1.0
    config.checkpoint_every_epochs = 1.0
    config.checkpoint_every_steps = 0  # steps; when set, instead of epochs
    config.keep_checkpoints = 2  # the latest so many
    config.keep_best = 0  # and so many with the highest test accuracy; if any, each new best one is saved
    config.tensorboard = False  # scalars in WORKDIR/tensorboard too, where tensorboardX is installed
    config.profile_steps = (0, 0)  # first and last step of a trace for xprof, in WORKDIR/profile; (0, 0): none

    # Compiled programs are kept here, so that the next start skips compilation. "": do not keep them.
    # JAX's own JAX_COMPILATION_CACHE_DIR wins.
    config.compilation_cache_dir = "~/.cache/resnet_jax/xla"

    config.lock()  # a config that sets a key which is not here is refused, and told what it may have meant
    config.model.kwargs.unlock()  # any field of ResNet
    return config
