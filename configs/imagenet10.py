"""ImageNet-10, 224×224, ResNetAP-10 with instance norm, factor 3, IPC 10.

    python main.py --config=configs/imagenet10.py --workdir=runs/imagenet10 \\
        --config.data.name=FOLDER

FOLDER holds train/ and test/ (the validation images), each with one folder per class.
The ten classes of the public IDC: n02869837, n01749939, n02488291, n02107142,
n13037406, n02091831, n04517823, n04589890, n03062245, n01773797. A TFDS dataset works
too: --config.data.source=tfds --config.data.name=imagenette/full-size-v2
--config.data.test_split=validation. Images may have any size.

Published IDC at IPC 10/20: 72.8 / 76.6 (f = 1: 61.4 / 65.5), about 8 h on one RTX 3090.
This program: not yet run (meant for a GPU). It differs in three things: it makes five
segments one after another (dasm.segments=1 is IDC); networks start from
scratch, where IDC trains each for 10 epochs before it is matched on
(trajectory.bank=10, bank_epochs=10 comes near); and IDC's evaluation augments and
counts epochs in its own way, where here the recipe is that of the 32 px sets. At IPC
20, synthetic.formation=bound keeps the memory of IPC 10.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "folder"
    config.data.name = "data/imagenet10"
    config.data.size = 224
    config.data.mean = (0.485, 0.456, 0.406)  # as usual for ImageNet
    config.data.std = (0.229, 0.224, 0.225)
    config.network.name = "resnet_ap10"
    config.synthetic.factor = 3
    for m in (config.matcher.idc, config.matcher.idc_i):
        m.metric = "l1"
        m.image.lr = 3e-3
        m.image.base_size = 224
        m.loop.niter = 500
        m.trajectory.n_data = 500
    return config
