"""The published datasets that `load_data` knows by name."""

from __future__ import annotations

from dataclasses import dataclass

from gpulayers.training.datasets.cifar import CIFAR10_FORMAT, CIFAR100_FORMAT, CifarFormat
from gpulayers.training.datasets.readers import IDX_FILES

DIGITS = tuple("0123456789")
_KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Download:
    """A file to fetch: its name, the digest of the file as served, and the addresses to try."""

    name: str
    digest: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """A published dataset.

    ``cifar`` is its layout if it is one of that family (else it is idx files); ``digests`` are
    those of the unpacked contents, which hold for re-compressed copies too (empty: the files are
    checked when downloaded, and by their lengths); ``folders`` are the subfolders of a data
    directory in which to look, the first being where downloads go.
    """

    name: str
    cifar: CifarFormat | None
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    downloads: tuple[Download, ...]
    digests: dict[str, str]


def _idx_downloads(mirrors: tuple[str, ...], digests: tuple[str, ...]) -> tuple[Download, ...]:
    return tuple(
        Download(f"{name}.gz", digest, tuple(f"{mirror}/{name}.gz" for mirror in mirrors))
        for name, digest in zip(IDX_FILES, digests, strict=True)
    )


# The MNIST database of handwritten digits: LeCun, Bottou, Bengio, Haffner, "Gradient-based
# learning applied to document recognition", Proc. IEEE 86(11), 1998.
MNIST = Published(
    name="mnist",
    cifar=None,
    classes=DIGITS,
    folders=("mnist", "MNIST/raw"),
    downloads=_idx_downloads(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
        ),
        (
            "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    digests=dict(
        zip(
            IDX_FILES,
            (
                "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            strict=True,
        )
    ),
)

# Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
# algorithms", arXiv:1708.07747, 2017.
FASHION_MNIST = Published(
    name="fashion-mnist",
    cifar=None,
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    folders=("fashion-mnist", "FashionMNIST/raw"),
    downloads=_idx_downloads(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
        (
            "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    digests=dict(
        zip(
            IDX_FILES,
            (
                "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "md5:9018921c3c673c538a1fc5bad174d6f9",
                "md5:8181f5470baa50b63fa0f6fddb340f0a",
                "md5:15d484375f8d13e6eb1aabb0c3f46965",
            ),
            strict=True,
        )
    ),
)

# Krizhevsky, "Learning multiple layers of features from tiny images", University of Toronto, 2009.
CIFAR10 = Published(
    name="cifar10",
    cifar=CIFAR10_FORMAT,
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    folders=("cifar10", "cifar10/cifar-10-batches-bin", "cifar-10-batches-bin"),
    downloads=(
        Download(
            CIFAR10_FORMAT.archive,
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            (f"{_KRIZHEVSKY}/{CIFAR10_FORMAT.archive}",),
        ),
    ),
    digests=dict(
        zip(
            CIFAR10_FORMAT.files,
            (
                "sha1:aadd24acce27caa71bf4b10992e9e7b2d74c2540",
                "sha1:c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
                "sha1:1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
                "sha1:aab85764eb3584312d3c7f65fd2fd016e36a258e",
                "sha1:26e2849e66a845b7f1e4614ae70f4889ae604628",
                "sha1:67eb016db431130d61cd03c7ad570b013799c88c",
            ),
            strict=True,
        )
    ),
)

# The hundred fine classes of the same report.
CIFAR100 = Published(
    name="cifar100",
    cifar=CIFAR100_FORMAT,
    classes=tuple(
        """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
    couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
    house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket
    rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
    turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
    ),
    folders=("cifar100", "cifar100/cifar-100-binary", "cifar-100-binary"),
    downloads=(
        Download(
            CIFAR100_FORMAT.archive,
            "md5:03b5dce01913d631647c71ecec9e9cb8",
            (f"{_KRIZHEVSKY}/{CIFAR100_FORMAT.archive}",),
        ),
    ),
    digests={},
)

PUBLISHED = {dataset.name: dataset for dataset in (MNIST, FASHION_MNIST, CIFAR10, CIFAR100)}
