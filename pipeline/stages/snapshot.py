"""Stage: writes the pool as a round has it, so that images that come later leave a round that has bought unchanged."""

from pipeline import artifacts, ledger, paths


def run(round_name: str) -> None:
    """Write the rows of the pool's manifest that belong to the round."""
    pool = ledger.pool_of(round_name)
    artifacts.save_images(round_name, pool)
    print(f"{round_name}: {len(pool)} images in its pool, {paths.images(round_name)}")
