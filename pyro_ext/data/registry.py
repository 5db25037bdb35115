r"""What is known of every data set: its arrays, its files, their digests and their mirrors.

A digest is the sha256 of a file as it lies on disk or comes from a mirror. Files without a mirror
are repackings (bit-packed or compressed further) that have to be put in the folder by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pyro_ext.data import decode

Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class File:
    r"""One file of a data set.

    Args:
        path: relative to the data folder.
        sha256: of the whole file, in hexadecimal.
        urls: mirrors, the preferred one first; empty if none is known.

    Example:
        >>> File("toy.npz", sha256=64 * "0").urls
        ()
    """

    path: str
    sha256: str
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    r"""Files that hold a whole data set together.

    Args:
        files: all of them are needed.
        decode: takes their contents, in the same order, and returns the arrays.

    Example:
        >>> Source((), decode.digits).decode()["x_train"].shape
        (1500, 8, 8)
    """

    files: tuple[File, ...]
    decode: Callable[..., decode.Arrays]


@dataclass(frozen=True)
class DataSet:
    r"""A data set: what it looks like and where it comes from.

    Args:
        layout: dtype and shape of each array, by name.
        sources: alternatives that give the same arrays, the preferred one first.

    Example:
        >>> SETS["digits"].layout["y_test"]
        ('int64', (297,))
    """

    layout: Layout
    sources: tuple[Source, ...]

    @property
    def mirrored(self) -> Source | None:
        """The first source whose every file has a mirror, if any has."""
        return next((s for s in self.sources if all(file.urls for file in s.files)), None)


def _images(shape: tuple[int, ...], *, labels: bool = True, **counts: int) -> Layout:
    """Lay out ``x_<split>`` and ``y_<split>`` for each split and its number of images."""
    layout: Layout = {f"x_{split}": ("uint8", (n, *shape)) for split, n in counts.items()}
    if labels:
        layout |= {f"y_{split}": ("int64", (n,)) for split, n in counts.items()}
    return layout


def _mirrored(folder: str, mirrors: tuple[str, ...], digests: dict[str, str]) -> tuple[File, ...]:
    """List files that lie in one folder under each mirror's address."""
    return tuple(
        File(f"{folder}/{name}", sha256, tuple(mirror + name for mirror in mirrors))
        for name, sha256 in digests.items()
    )


def _local(path: str, sha256: str, decoder: Callable[..., decode.Arrays]) -> Source:
    """Describe a single file that no mirror serves."""
    return Source((File(path, sha256),), decoder)


def _regression(name: str, rows: int, columns: int, splits: int, sha256: str) -> DataSet:
    """Describe a UCI set with its train-test splits."""
    layout: Layout = {
        "x": ("float32", (rows, columns)),
        "y": ("float32", (rows,)),
        "test_mask": ("bool", (splits, rows)),
    }
    return DataSet(layout, (_local(f"{name}.npz", sha256, decode.regression_npz),))


_MNIST = _mirrored(
    "mnist",
    (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    {
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
)

_FASHION_MNIST = _mirrored(
    "fashion_mnist",
    (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    {
        "train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
)

_STATIC_MNIST = _mirrored(
    "static_mnist",
    (
        "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
        "https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
    ),
    {
        "binarized_mnist_train.amat": (
            "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"
        ),
        "binarized_mnist_valid.amat": (
            "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
        ),
        "binarized_mnist_test.amat": (
            "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"
        ),
    },
)

_CIFAR10 = _mirrored(
    "cifar10",
    (
        "https://www.cs.toronto.edu/~kriz/",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
    ),
    {
        "cifar-10-binary.tar.gz": (
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        )
    },
)

SETS: dict[str, DataSet] = {
    "digits": DataSet(_images((8, 8), train=1500, test=297), (Source((), decode.digits),)),
    "mnist": DataSet(
        _images((28, 28), train=60000, test=10000),
        (
            _local(
                "mnist.npz",
                "9b8e40e0bbdd367ffa5d11a0cd0ad31ef5c40a5694474ffcbaf9570bafb41382",
                decode.npz,
            ),
            Source(_MNIST, decode.idx),
        ),
    ),
    "fashion_mnist": DataSet(
        _images((28, 28), train=60000, test=10000), (Source(_FASHION_MNIST, decode.idx),)
    ),
    "static_mnist": DataSet(
        _images((28, 28), labels=False, train=50000, valid=10000, test=10000),
        (
            _local(
                "static_mnist_packed.npz",
                "a27f49d5cc964ec4499d88f1e9a53b7ff3e4bcc103b2406569a18f9087a41f1b",
                decode.packed_npz,
            ),
            Source(_STATIC_MNIST, decode.amat),
        ),
    ),
    "omniglot": DataSet(
        _images((28, 28), train=24345, test=8070),
        (
            _local(
                "omniglot28_static_packed.npz",
                "840b033a38c484d355617ce3f6228fa13ae97b44eef3118edd6abd96f146f142",
                decode.omniglot_npz,
            ),
        ),
    ),
    "caltech101_silhouettes": DataSet(
        _images((28, 28), train=4100, valid=2264, test=2307),
        (
            _local(
                "caltech101_silhouettes28_packed.npz",
                "a3619c7e9c72b7d206ed14693ae04b6d91fd46608708b0788bd5a2c8ed8d74c4",
                decode.silhouettes_npz,
            ),
        ),
    ),
    "cifar10": DataSet(
        _images((3, 32, 32), train=50000, test=10000), (Source(_CIFAR10, decode.cifar_tar),)
    ),
    "cifar10_mini": DataSet(
        _images((3, 32, 32), train=4500, test=1000),
        (
            _local(
                "cifar10_mini.npz",
                "aef8bfe2e5dfeb43c3cafd0a6dc78c91d4dbecde3c520fafa95de7d04a0ce74f",
                decode.colour_npz,
            ),
        ),
    ),
    "rat_hippocampus": DataSet(
        {
            "spikes": ("uint8", (6577, 48)),
            "position": ("float32", (6577,)),
            "direction": ("int64", (6577,)),
            "bin_seconds": ("float32", ()),
        },
        (
            _local(
                "nica/rat_hippocampus_buddy.npz",
                "08daaa1d1509a31588bee2e3b9efe969ebd82a49b41dbf411364540e687e5d2a",
                decode.npz,
            ),
        ),
    ),
}

SETS |= {
    f"uci/{name}": _regression(f"uci/{name}", rows, columns, splits, sha256)
    for name, rows, columns, splits, sha256 in (
        ("boston", 506, 13, 20, "0e421e134d988610447ae1cc63890bb0768037d94a2a3506129e6bb5fedf93ca"),
        (
            "concrete",
            1030,
            8,
            20,
            "b70121ee4f6e1562a4c07906adb6cb773cb822e2de29dd2d4386c031af6bc161",
        ),
        ("energy", 768, 8, 20, "0a11541b283ffb4f754b522ba64407e3a880b8620ebd9e67ced5184fc290b14c"),
        ("kin8nm", 8192, 8, 20, "5756ffd041c5bab2e39c883adee512d5255f3e9ea391b58755518c41a7e7916d"),
        (
            "naval",
            11934,
            16,
            20,
            "028a17742395c8416454e417b5029615ac24305a107e20178ff4ed54a06c08a1",
        ),
        ("power", 9568, 4, 20, "f01bfbd0d2160f6a56061f42042963177d646bdd06d9584453291a5b8ab96028"),
        (
            "protein",
            45730,
            9,
            5,
            "6b39ea35e06d382613b03069513d05e298f4ebc5b8e42aa08c83a8b11f57a8e2",
        ),
        (
            "wine_red",
            1599,
            11,
            20,
            "779bed53f7dc1631863ef43aeba249f29dfae852e329cf414d69c198806460c6",
        ),
        ("yacht", 308, 6, 20, "f937b499dc5fa7a7d1a82308d5a958272215093f5c1732aade98c2a0566ef966"),
    )
}
