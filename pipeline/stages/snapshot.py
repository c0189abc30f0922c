"""Stage: the pool as a round has it. Once the round has bought, images that come to the pool later change nothing."""

from pipeline import artifacts, ledger, paths


def run(round_name: str) -> None:
    """Write the rows of the pool's manifest that the round has to do with."""
    pool = ledger.pool_of(round_name)
    artifacts.save_images(round_name, pool)
    print(f"{round_name}: {len(pool)} images in its pool, {paths.images(round_name)}")
