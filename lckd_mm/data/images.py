"""Images without annotations, from a folder."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.dataset import BaseDataset

from .. import arguments
from ..registry import DATASETS


@DATASETS.register_module()
class Images(BaseDataset):
    """The images of a folder and its subfolders, without annotations, in the order of their names; for any host.

    Args:
        folder: where they are.
        pipeline: the steps from the file to the packed image, without those that read or need annotations.
        suffixes: of the files, in lower case.
    Raises:
        FileNotFoundError: no such folder, or no image in it.
    Example:
        dataset=dict(
            type='lckd_mm.Images',
            folder='data/more',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
        )
    """

    METAINFO = {}

    def __init__(
        self,
        folder: str,
        pipeline: Sequence = (),
        suffixes: Sequence[str] = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'),
        **kwargs,
    ):
        self.folder = Path(arguments.string('Images', 'folder', folder)).expanduser()
        self.suffixes = tuple(arguments.sequence('Images', 'suffixes', suffixes, 'suffixes'))
        super().__init__(ann_file='', pipeline=list(pipeline), **kwargs)

    def load_data_list(self) -> list[dict]:
        if not self.folder.is_dir():
            raise FileNotFoundError(f'Images: no folder {str(self.folder)!r}; set folder to where the images are')
        files = sorted(path for path in self.folder.rglob('*') if path.suffix.lower() in self.suffixes)
        if not files:
            raise FileNotFoundError(
                f'Images: no file in {str(self.folder)!r} ends in {", ".join(self.suffixes)}; set folder or suffixes'
            )
        # mmseg's transforms look into seg_fields.
        return [dict(img_path=str(path), img_id=i, seg_fields=[]) for i, path in enumerate(files)]
