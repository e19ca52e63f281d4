"""Builders of tensorflow_datasets for the sets of text, which it has no official ones for."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

# Unregistered: tensorflow_datasets' own list of names stays as it is.
with registered.skip_registration():

    class Lines(tfds.core.GeneratorBasedBuilder):
        """Lines of fields set apart by tabs; its examples come from `builders.write`."""

        name = "lines"
        VERSION = tfds.core.Version("1.0.0")
        ABOUT = "Lines of text."
        HOMEPAGE = ""

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.ABOUT,
                features=tfds.features.FeaturesDict(
                    {
                        "line": tfds.features.Text(),
                        "place": tfds.features.Scalar(dtype=np.int32),
                    }
                ),
                supervised_keys=("line", "place"),
                homepage=self.HOMEPAGE,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            raise NotImplementedError("builders.write gives the splits")

        def _generate_examples(self, *arguments: Any) -> Any:
            raise NotImplementedError("builders.write gives the examples")

    class WebWords(Lines):
        """The verses of the World English Bible."""

        name = "web_words"
        ABOUT = "World English Bible: chapter, number and text of each verse, by place."
        HOMEPAGE = "https://worldenglish.bible"

    class Verses(Lines):
        """Pairs of verses, English and Spanish."""

        name = "verses"
        ABOUT = "King James Version and Reina-Valera 1909: verse, English text, Spanish text."
        HOMEPAGE = "https://ebible.org"

    class Cmudict(Lines):
        """Words and all their pronunciations."""

        name = "cmudict"
        ABOUT = "CMU Pronouncing Dictionary: a word, then each of its pronunciations."
        HOMEPAGE = "https://github.com/cmusphinx/cmudict"
