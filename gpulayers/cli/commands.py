"""What each command is for, and examples of its use."""

from __future__ import annotations

__all__ = ["COMMANDS", "EXIT_CODES"]

EXIT_CODES = """\
exit codes:
  0    done
  1    the run failed: data, checkpoint, memory, a diverging loss, a missing device
  2    wrong usage: an option, its value, a key of the configuration file, a variable
       of the environment
  130  stopped with Ctrl-C
"""

# name: (line in the overview, description, examples)
COMMANDS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "train": (
        "train a network (without options: LeNet-5 on 10,000 MNIST digits)",
        "Train a network; without options LeNet-5 on 10,000 MNIST digits, which are inside the "
        "package. The results go to runs/<model>-<data>/, with a config.toml that repeats the run.",
        (
            ("gpulayers train", "seconds on a laptop"),
            ("gpulayers train --model resnet9 --data cifar10 --device gpu", ""),
            ("gpulayers train --optimizer 'SGD(momentum=0.9)' --lr 0.05 --schedule cosine", ""),
            ("gpulayers train --config runs/lenet-mnist-10k/config.toml", "the same run again"),
            ("gpulayers train --config run.toml --seed 1", "the command line overrides the file"),
            ("gpulayers train --resume runs/lenet-mnist-10k", "go on after Ctrl-C or a crash"),
        ),
    ),
    "evaluate": (
        "loss, accuracy and confusions of a trained network on a test set",
        "Loss, accuracy and confusions of a trained network on a test set. Images of floats are "
        "taken as they are, bytes are treated as those of the training.",
        (
            ("gpulayers evaluate runs/lenet-mnist-10k", ""),
            ("gpulayers evaluate runs/lenet-mnist-10k/best.safetensors --data mnist", ""),
            ("gpulayers evaluate runs/lenet-mnist-10k --plots pictures", "what it gets wrong"),
            ("gpulayers evaluate runs/lenet-mnist-10k --json | jq .accuracy", ""),
        ),
    ),
    "predict": (
        "classes and probabilities of images",
        "Name what a trained network sees in images. Image files are turned gray if the network "
        "wants that, and scaled to its size; .npy files hold one image (rows, cols[, channels]) or "
        "several (n, rows, cols, channels), as bytes (uint8, 0 to 255), which are treated as those "
        "of the training. Floats are taken as they are: right only for a network that was trained "
        "on floats of the same scale; a warning is printed where they do not fit.",
        (
            ("gpulayers predict runs/lenet-mnist-10k scan.png", ""),
            ("gpulayers predict runs/lenet-mnist-10k *.png --digit --invert", "ink on paper"),
            ("gpulayers predict runs/resnet9-cifar10 photos.npy --top 5 --json", ""),
        ),
    ),
    "export": (
        "a trained network as ONNX, safetensors or npz",
        "Write a trained network for other programs; the ending of OUT says the format: .onnx (the "
        "network), .safetensors or .npz (its parameters alone).",
        (
            (
                "gpulayers export runs/lenet-mnist-10k lenet.onnx --uint8",
                "takes pixels as they are",
            ),
            ("gpulayers export runs/lenet-mnist-10k/best.safetensors weights.safetensors", ""),
        ),
    ),
    "bench": (
        "how fast this machine trains and predicts",
        "Time training steps and predictions of a network on this machine, on random images; with "
        "--profile each layer's forward and backward pass too.",
        (
            ("gpulayers bench", "LeNet-5, a few seconds"),
            ("gpulayers bench --model vgg-small --batch-size 128 --profile", ""),
            ("gpulayers bench --device gpu --json", ""),
        ),
    ),
    "tune": (
        "measure which kernels are fastest for a network on this GPU",
        "Measure which kernels are fastest for the shapes in a training step of a network on this "
        "GPU. The choices are kept, and hold in every later process; without, kernels are chosen "
        "by rule.",
        (
            ("gpulayers tune", "LeNet-5, batches of 64"),
            ("gpulayers tune --model vgg-small --batch-size 128 --json", "with all candidates"),
            ("gpulayers tune --clear", "back to the rules"),
        ),
    ),
    "demo": (
        "draw a digit in the browser and watch the network",
        "Open a local page on which one draws a digit and sees the prediction, the feature maps of "
        "each layer and the gradient that reaches the input. Only this machine can reach it, and "
        "it needs no network. Without --checkpoint a small network is trained first.",
        (
            ("gpulayers demo", "trains for a few seconds"),
            ("gpulayers demo --checkpoint runs/lenet-mnist-10k --open", ""),
            ("gpulayers demo --port 0", "any free port"),
        ),
    ),
    "info": (
        "what computes here (NumPy or a GPU), and why",
        "Print the array library, device and versions picked, and why; what is wrong with a "
        "variable of the environment (GPULAYERS_...) is said on standard error.",
        (("gpulayers info", ""), ("gpulayers info --json | jq -r .backend", "")),
    ),
    "completion": (
        "a script that completes commands, options and names in a shell",
        "Print a completion script for bash, zsh or tcsh.",
        (
            ('eval "$(gpulayers completion bash)"', "this shell; in ~/.bashrc every one"),
            ("gpulayers completion zsh > ~/.zfunc/_gpulayers", "a folder in $fpath"),
        ),
    ),
}
