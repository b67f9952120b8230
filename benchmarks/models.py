"""Train BernoulliVAE, WGAN_GP and Word2Vec on the CPU, and measure how good they become.

    OPENBLAS_NUM_THREADS=1 python benchmarks/models.py    # a table, benchmarks/results/models.json
    python benchmarks/models.py --parts wgan,w2v --plot ring.png
    python benchmarks/models.py --parts vae --data mnist-10k --epochs 1

vae: the lower bound on the test images (nats an image), beside the same model in PyTorch: from the
same weights, on the same batches, with the same optimizer and the same noise.
wgan: eight normal distributions on a ring. A point counts as good within three standard deviations
of the nearest one, a mode as found if a good point is nearest to it (Srivastava et al., "VEEGAN",
2017); stricter, a mode as held if the good points nearest to it are at least 1 % of all.
w2v: sentences of a small grammar. How many of a word's five nearest neighbours are of its own kind.

Times are CPU time, which other work on the machine does not change much; all on one thread if
OPENBLAS_NUM_THREADS=1. The PyTorch side needs PyTorch, --plot needs matplotlib. The full MNIST is
looked for in --data-dir, GPULAYERS_DATA and the cache folder, else downloaded. Parts that are not
run keep their results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import gpulayers
from gpulayers import random
from gpulayers.errors import GPULayersError
from gpulayers.models import WGAN_GP, BernoulliVAE, Word2Vec
from gpulayers.ops import kernels_for
from gpulayers.training import load_data

RESULTS = Path(__file__).parent / "results" / "models.json"
Array = Any

# ------------------------------------------------------------------------------------------- VAE


def learned(vae: BernoulliVAE) -> dict[str, Array]:
    """The parameters by name, such as "Conv1.W"; the live arrays."""
    layers = {**vae.encoder, **{f"decoder {key}": part for key, part in vae.decoder.items()}}
    return {f"{key}.{n}": a for key, part in layers.items() for n, a in part.parameters.items()}


class TorchVAE:
    """The same model in PyTorch: autograd, torch's layers and torch's Adam.

    Parameters
    ----------
    vae : BernoulliVAE
        Has seen an image; its parameters are copied, its sizes and strides taken over.
    lr : float
    """

    def __init__(self, vae: BernoulliVAE, lr: float) -> None:
        import torch

        self.torch, self.vae = torch, vae
        self.p = {
            name: torch.tensor(np.array(values), requires_grad=True)
            for name, values in learned(vae).items()
        }
        self.adam = torch.optim.Adam(list(self.p.values()), lr=lr, eps=1e-7)  # our eps

    def _convolved(self, x: Any, which: int) -> Any:
        F, vae = self.torch.nn.functional, self.vae
        W, b = self.p[f"Conv{which}.W"], self.p[f"Conv{which}.b"]
        stride, pad = (getattr(vae, f"enc_conv{which}_{what}") for what in ("stride", "pad"))
        x = F.conv2d(x, W.permute(3, 2, 0, 1), b.reshape(-1), stride=stride, padding=pad)
        kernel = getattr(vae, f"enc_pool{which}_kernel_shape")
        return F.max_pool2d(self.torch.relu(x), kernel, getattr(vae, f"enc_pool{which}_stride"))

    def _dense(self, x: Any, name: str) -> Any:
        return x @ self.p[f"{name}.W"] + self.p[f"{name}.b"]

    def loss(self, images: Array, noise: Array) -> Any:
        """The mean negative bound of images (n, rows, cols, channels), given the noise (n, T)."""
        torch, T = self.torch, self.vae.T
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        x = self._convolved(self._convolved(x, 1), 2).permute(0, 2, 3, 1).flatten(1)
        both = self._dense(torch.relu(self._dense(x, "FC4")), "FC5")
        mean, log_var = both[:, :T], both[:, T:]
        z = mean + torch.from_numpy(noise) * torch.exp(log_var / 2)
        y = self._dense(torch.relu(self._dense(z, "decoder FC1")), "decoder FC2").sigmoid()
        targets = torch.from_numpy(images).flatten(1)
        error = torch.nn.functional.binary_cross_entropy(y, targets, reduction="sum")
        divergence = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()
        return (error + divergence) / len(images)

    def fit(self, images: Array, epochs: int, batchsize: int) -> list[float]:
        """Train as `BernoulliVAE.fit` does, drawing the same numbers; the mean loss by epoch."""
        losses = []
        for _ in range(epochs):
            total, order = 0.0, random.default_generator().permutation(len(images))
            for i in range(0, len(images), batchsize):
                batch = images[order[i : i + batchsize]]
                loss = self.loss(batch, self._noise(len(batch), batch.dtype))
                self.adam.zero_grad()
                loss.backward()
                self.adam.step()
                total += loss.item() * len(batch)
            losses.append(total / len(images))
        return losses

    def evaluate(self, images: Array, batchsize: int) -> float:
        """As `BernoulliVAE.evaluate`."""
        total = 0.0
        with self.torch.no_grad():
            for i in range(0, len(images), batchsize):
                batch = images[i : i + batchsize]
                total += self.loss(batch, self._noise(len(batch), batch.dtype)).item() * len(batch)
        return total / len(images)

    def _noise(self, n: int, dtype: Any) -> Array:
        return random.default_generator().normal((n, self.vae.T), dtype=dtype, xp=np)


def trained(model: Any, train: Array, test: Array, options: argparse.Namespace) -> dict[str, Any]:
    """Train a VAE, ours or PyTorch's, and measure it."""
    random.seed(options.seed + 1)
    start = time.process_time()
    losses = model.fit(train, options.epochs, options.batch)
    seconds = time.process_time() - start
    random.seed(options.seed + 2)
    bound = -model.evaluate(test, 500)
    return {
        "test bound": round(bound, 3),
        "training bounds": [round(-loss, 3) for loss in losses],
        "images a CPU second": round(options.epochs * len(train) / seconds),
    }


def vae_part(options: argparse.Namespace) -> dict[str, Any]:
    """Both models on the same digits."""
    data = load_data(options.data, options.data_dir)
    train, test = ((split.images / 255).astype("float32") for split in (data.train, data.test))
    train, test = train[: options.images], test[: options.images]
    random.seed(options.seed)
    vae = BernoulliVAE(T=10, optimizer="Adam(lr=0.001)")
    vae.forward(train[:1], retain_derived=False)  # draws the weights
    try:
        theirs = TorchVAE(vae, lr=0.001)
    except ImportError:
        theirs = None
    found: dict[str, Any] = {
        "data": f"{data.name}, {len(train)} training and {len(test)} test images",
        "model": f"BernoulliVAE(T={vae.T}), Adam(lr=0.001), batches of {options.batch}, "
        f"{options.epochs} epochs",
        "threads": os.environ.get("OPENBLAS_NUM_THREADS", "as many as there are"),
        "gpulayers": trained(vae, train, test, options),
    }
    if theirs is not None:
        if "OPENBLAS_NUM_THREADS" in os.environ:
            theirs.torch.set_num_threads(int(os.environ["OPENBLAS_NUM_THREADS"]))
        found["PyTorch"] = trained(theirs, train, test, options)
    return found


# ------------------------------------------------------------------------------------------ WGAN

MODES, RADIUS, STD = 8, 2.0, 0.05


def centres() -> Array:
    """The means of the mixture, (8, 2)."""
    angles = 2 * np.pi * np.arange(MODES) / MODES
    return RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def mixture(n: int, seed: int) -> Array:
    """`n` points of the mixture, (n, 2)."""
    rng = np.random.default_rng(seed)
    points = centres()[rng.integers(0, MODES, n)] + STD * rng.standard_normal((n, 2))
    return points.astype("float32")


def coverage(points: Array) -> dict[str, Any]:
    """Modes found, and the share of good points."""
    distances = np.linalg.norm(points[:, None] - centres(), axis=2)
    good = distances.min(axis=1) < 3 * STD
    counts = np.bincount(distances.argmin(axis=1)[good], minlength=MODES)
    return {
        "modes found": int((counts > 0).sum()),
        "modes held": int((counts >= 0.01 * len(points)).sum()),
        "good points": round(float(good.mean()), 4),
        "points by mode": counts.tolist(),
    }


def wgan_part(options: argparse.Namespace) -> dict[str, Any]:
    """A generator that spreads over the ring."""
    random.seed(options.seed)
    gan = WGAN_GP(g_hidden=128, optimizer="Adam(lr=0.001, decay1=0.5, decay2=0.9)")
    points = mixture(20_000, options.seed)
    start = time.process_time()
    gan.fit(points, lambda_=0.1, n_steps=options.steps, batchsize=256)
    for part in (*gan.generator.values(), *gan.critic.values()):
        part.optimizer.set_params({"lr": 0.0001})  # the last third in small steps
    gan.fit(points, lambda_=0.1, n_steps=max(options.steps // 2, 1), batchsize=256)
    seconds = time.process_time() - start
    drawn = gan.sample(2500)
    if options.plot:
        draw(points[:2500], drawn, options.plot)
    return {
        "data": f"{MODES} normal distributions, radius {RADIUS}, standard deviation {STD}",
        "model": f"WGAN_GP(g_hidden=128), lambda 0.1, {options.steps} steps at lr 0.001, "
        f"{options.steps // 2} at 0.0001",
        "real points": coverage(mixture(2500, options.seed + 1)),
        "points drawn": coverage(drawn),
        "CPU seconds": round(seconds, 1),
    }


def draw(real: Array, drawn: Array, path: Path) -> None:
    """Real and generated points side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4))
    for ax, points, title in zip(
        figure.subplots(1, 2), (real, drawn), ("real", "generated"), strict=True
    ):
        ax.plot(*points.T, ".", markersize=2)
        ax.set(title=title, aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    figure.tight_layout()
    figure.savefig(path, dpi=150)


# -------------------------------------------------------------------------------------- Word2Vec

KINDS = {
    "animal": "cat dog horse cow sheep fox wolf bear",
    "food": "bread cheese soup rice apples honey fish cake",
    "vehicle": "ship boat car train tram lorry bicycle plane",
    "person": "baker farmer sailor doctor teacher miller tailor smith",
    "tool": "hammer saw axe knife shovel needle spade chisel",
    "town": "paris london rome vienna madrid lisbon prague oslo",
    "colour": "red green blue yellow white black brown grey",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
}
SENTENCES = (
    "the {colour} {animal} eats the {food}",
    "the {person} feeds the {animal} with {food} on {day}",
    "the {animal} runs from the {person} into the woods",
    "the {person} buys {food} in {town}",
    "the {person} cooks {food} for supper on {day}",
    "the {vehicle} leaves {town} on {day}",
    "the {person} steers a {colour} {vehicle} to {town}",
    "the {person} mends the {vehicle} with a {tool}",
    "the {tool} lies sharp and {colour} on the bench",
    "the {person} borrows a {tool} until {day}",
    "the people of {town} paint their doors {colour}",
    "the {animal} sleeps under a {colour} blanket",
)


def corpus(sentences: int, seed: int) -> str:
    """Sentences of the grammar, one a line."""
    rng = np.random.default_rng(seed)
    words = {kind: members.split() for kind, members in KINDS.items()}
    lines = []
    for _ in range(sentences):
        chosen = {kind: members[rng.integers(len(members))] for kind, members in words.items()}
        lines.append(SENTENCES[rng.integers(len(SENTENCES))].format(**chosen))
    return "\n".join(lines)


def kinship(model: Word2Vec, n: int = 5) -> tuple[float, float]:
    """How many of the `n` nearest neighbours are of a word's own kind; and by chance."""
    hits, chance = [], []
    for members in map(str.split, KINDS.values()):
        for word in members:
            hits += [near in members for near, _ in model.nearest(word, n)]
            chance.append((len(members) - 1) / (model.vocab_size - 1))
    return float(np.mean(hits)), float(np.mean(chance))


def w2v_part(options: argparse.Namespace) -> dict[str, Any]:
    """Words of a kind come to lie together."""
    random.seed(options.seed)
    model = Word2Vec(
        context_len=3, embedding_dim=24, num_negative_samples=16, optimizer="Adam(lr=0.005)"
    )
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.txt"
        path.write_text(corpus(options.sentences, options.seed), encoding="utf-8")
        model.fit(path, n_epochs=options.w2v_epochs)
    seconds = time.process_time() - start
    share, chance = kinship(model)
    return {
        "data": f"{options.sentences} sentences, {int(model.vocab.counts.sum())} words, "
        f"{model.vocab_size} different ones",
        "model": f"Word2Vec(context_len=3, embedding_dim=24, num_negative_samples=16), "
        f"Adam(lr=0.005), {options.w2v_epochs} epochs",
        "own kind among the 5 nearest": round(share, 4),
        "by chance": round(chance, 4),
        "nearest": {
            members.split()[0]: [near for near, _ in model.nearest(members.split()[0])]
            for members in KINDS.values()
        },
        "CPU seconds": round(seconds, 1),
    }


# ------------------------------------------------------------------------------------------ main

PARTS = {"vae": vae_part, "wgan": wgan_part, "w2v": w2v_part}


def rows(results: dict[str, Any], indent: str = "") -> list[tuple[str, str]]:
    """The results as lines of a table."""
    found = []
    for key, value in results.items():
        if isinstance(value, dict):
            found += [(f"{indent}{key}", ""), *rows(value, indent + "  ")]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((f"{indent}{key}", text))
    return found


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default="vae,wgan,w2v", help="comma-separated")
    parser.add_argument("--data", default="mnist", help="digits for the VAE: mnist or mnist-10k")
    parser.add_argument("--data-dir", help="where the full MNIST lies")
    parser.add_argument("--images", type=int, help="only so many of them")
    parser.add_argument("--epochs", type=int, default=3, help="of the VAE")
    parser.add_argument("--batch", type=int, default=128, help="of the VAE")
    parser.add_argument(
        "--steps", type=int, default=2000, help="of the WGAN, before the small ones"
    )
    parser.add_argument("--sentences", type=int, default=10_000, help="for Word2Vec")
    parser.add_argument("--w2v-epochs", type=int, default=10, help="of Word2Vec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="draw the WGAN's points into this file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; known are {', '.join(PARTS)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    gpulayers.use_backend("numpy")
    for part in options.parts:
        print(f"--- {part}")
        try:
            results[part] = PARTS[part](options)
        except GPULayersError as error:
            print(f"benchmarks/models.py: {error}", file=sys.stderr)
            return 1
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, NumPy {np.__version__}"
        engine = kernels_for(np.zeros(1)).__class__.__name__
        results[part]["measured"] = f"{time.strftime('%Y-%m-%d')}, {machine}, {engine} kernels"
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = rows({part: results[part] for part in options.parts})
    width = max(len(key) for key, _ in table)
    for key, value in table:
        print(f"{key:<{width}}  {value}".rstrip())
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
