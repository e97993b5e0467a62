"""``torchrun --nproc-per-node N -m vdvae_codec.training ...``: the options of ``vdvae-codec train``, many processes."""

from vdvae_codec.cli.process import tune_process  # type: ignore[import-not-found]

if __name__ == "__main__":
    tune_process()
    from vdvae_codec.cli.train import train  # type: ignore[import-not-found]

    train(prog_name="vdvae_codec.training")
