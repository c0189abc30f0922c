"""`python -m pipeline join`: after a git merge of branches that each bought labels, one ledger and one store of all.

Git merges lines, DVC keeps one list of labels per branch: after a merge the ledger speaks of both branches' labels and
data/labels.dvc of one's. Here every line that a merge left out comes back, every label that is paid for is fetched from
DVC's cache or remote by its hash, and an image that was bought on both branches is settled: the label that came first
counts, the minutes of the other stay on record (`Double`). Whatever is killed, it is run again; run twice it changes
nothing.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dvc.config import NoRemoteError
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

from pipeline import artifacts, ledger, paths, repository, storage
from pipeline.errors import UserError
from pipeline.images import blocks
from pipeline.ledger import label_store
from pipeline.ledger.entries import Delivery, Double, Entry, Ledger, Order, Paid, Removal, Skip, ordered_twice

if TYPE_CHECKING:
    pass

DVC_LOCK = Path("dvc.lock")
MADE_ANEW = (DVC_LOCK, paths.LABELS_DVC, Path("data/.gitignore"), paths.ROUNDS, paths.METRICS, paths.REPORTS)
"""Files that `dvc repro` or this command makes again, so that either side of a conflict will do."""
FOLDER = re.compile(r"md5: ([0-9a-f]{32}\.dir)")
"""Pattern of the hash by which data/labels.dvc names the list of its files."""


def run() -> None:
    """Join the ledgers and the labels of all branches that were merged into this one.

    Raises:
        UserError: this is no git repository, a file that only people can merge is not merged, or a label that is paid
            for is nowhere to be found.
    """
    repository.git("rev-parse", "--git-dir")
    folders = _label_folders()  # before data/labels.dvc is touched
    _settle_conflicts()
    book = _join_ledger()
    lacking = {key: digests[0] for key, digests in _versions(book).items() if _lacks(key, digests)}
    with label_store.opened() as repo:
        brought = _fetch(repo, lacking, folders)
        for key, data in brought.items():
            _keep_present(repo, key)
            storage.write(paths.mask(key), data)
        _say(brought, f"{paths.LABELS}: brought {len(brought)} labels")
        gone = sorted(lacking.keys() - brought.keys())
        if gone:
            raise _lost(repo, gone)
        label_store.check(book)
        label_store.add(repo)
    for name in dict.fromkeys(entry.round for entry in book.entries):
        _renew_round(name, book)
    print(
        f"join: {paths.LEDGER} and {paths.LABELS} hold the {len(_versions(book))} labels that are paid for: run "
        "`git add -A` and `git commit`, then `dvc repro`, which makes anew what these labels change, and `dvc push`"
    )


def _say(changed: object, text: str) -> None:
    if changed:
        print(f"join: {text}")


# conflicts


def _settle_conflicts() -> None:
    """Take our side of what is made anew; the ledger is joined later, anything else is for people to merge.

    Raises:
        UserError: a file that DVC reads before it does anything has an unresolved conflict.
    """
    marked = repository.marked()
    for path in (paths.PARAMS, Path("dvc.yaml"), Path(".dvc/config")):
        if path in marked:
            raise UserError(
                f"{path} holds the marks of a git merge ({repository.MARK.strip()}): edit it so that it holds what "
                f"both sides need, then run {ledger.JOIN}"
            )
    for path in marked:
        if any(path.is_relative_to(one) for one in MADE_ANEW):
            storage.write(path, repository.first_side(path.read_text(encoding="utf-8")).encode())
            print(f"join: {path}: took our side of the conflict; `dvc repro` makes it anew")


# the ledger


def _join_ledger() -> Ledger:
    """Write the ledger of all sides, if that is another than the one that is here.

    Raises:
        UserError: a line is neither an entry nor a mark of a conflict.
    """
    here = []
    for number, line in enumerate(ledger.lines(), start=1):
        if line.startswith(("<<<<<<< ", "||||||| ", "=======", ">>>>>>> ")):
            continue
        try:
            here.append(ledger.parse(line))
        except ValueError:
            raise UserError(
                f"{paths.LEDGER}: line {number} is neither an entry nor a mark of a merge ({line[:60]!r}): mend that "
                f"line, `git diff {paths.LEDGER}` shows what was changed; then run {ledger.JOIN}"
            ) from None
    here = _once(here)
    lost = _left_out(here)
    _say(lost, f"{paths.LEDGER}: brought back {len(lost)} lines that the merge had left out")
    joined, doubles = settle([*here, *lost])
    for one in doubles:
        print(
            f"join: {one.key!r} was bought twice, this time in {one.round}: the label that came first counts, "
            f"{one.minutes:g} minutes of {one.annotator or 'nobody'} stay on record"
        )
    text = "".join(ledger.format_line(entry) + "\n" for entry in joined)
    if joined and text.encode() != (paths.LEDGER.read_bytes() if paths.LEDGER.is_file() else b""):
        storage.write(paths.LEDGER, text.encode())
    return ledger.load()


def _once(entries: Iterable[Entry]) -> list[Entry]:
    return list({ledger.format_line(entry): entry for entry in entries}.values())


def _left_out(here: Sequence[Entry]) -> list[Entry]:
    """Entries of merged branches' ledgers that are missing here, oldest first.

    Not those of an image and round that has a `Double`: they are settled.
    """
    there: list[Entry] = []
    for line in [*_history(), *itertools.chain(*(text.split("\n") for text in repository.sides(paths.LEDGER)))]:
        try:
            there.append(ledger.parse(line))
        except ValueError:
            continue  # conflict markers that were committed, or a line that was corrected since
    known = {ledger.format_line(entry) for entry in here}
    settled = {(entry.round, entry.key) for entry in here if isinstance(entry, Double)}
    return [
        entry
        for entry in _once(there)
        if ledger.format_line(entry) not in known and (entry.round, entry.key) not in settled
    ]


def _history() -> list[str]:
    """Every line that was ever added to the ledger on the way to this commit, since it was last deleted."""
    if not repository.has_commits():
        return []
    deleted = repository.git("log", "-1", "--diff-filter=D", "--format=%H", "HEAD", "--", paths.LEDGER.as_posix())
    return repository.added(paths.LEDGER, "HEAD", *(f"^{commit}" for commit in deleted.split()))


def settle(entries: Sequence[Entry]) -> tuple[list[Entry], list[Double]]:
    """(the entries of one merged ledger, the purchases made twice).

    An image that was ordered twice keeps the purchase whose label came first; the others become a `Double` each. So do
    purchases of regions that share a region, or the round and the image, with one that is kept.
    Deliveries of one purchase stand in the order of their time, so that the newest correction is the last.
    """
    purchases: dict[str, list[list[Entry]]] = {}
    for entry in entries:
        mine = purchases.setdefault(entry.key, [])
        if isinstance(entry, Order):
            mine.append([entry])
        elif not isinstance(entry, Double):
            own = [purchase for purchase in mine if purchase[0].round == entry.round]
            if own:
                own[-1].append(entry)
    rivals: dict[Paid, list[list[Entry]]] = {paid: [] for paid in ordered_twice(entries)}
    for purchase in itertools.chain.from_iterable(purchases.values()):
        for paid in dict.fromkeys(_asked(purchase)):
            if paid in rivals:
                rivals[paid].append(purchase)
    every = {id(purchase): purchase for several in rivals.values() for purchase in several}
    kept: dict[Paid, list[Entry]] = {}
    instead: dict[int, list[Entry]] = {}
    for purchase in sorted(every.values(), key=_precedence):
        disputed = [paid for paid in _asked(purchase) if paid in rivals]
        first = next((kept[paid] for paid in disputed if paid in kept), None)
        if first is None:
            kept |= dict.fromkeys(disputed, purchase)
        else:
            instead[id(purchase)] = first
    dropped = [purchase for number, purchase in every.items() if number in instead]
    removed = [
        entry._replace(round=instead[id(purchase)][0].round, key=instead[id(purchase)][0].key)
        for purchase in dropped
        for entry in purchase
        if isinstance(entry, Removal)
    ]
    doubles = [_double(purchase) for purchase in dropped]
    gone = {id(entry) for purchase in dropped for entry in purchase}
    known = {entry for entry in entries if isinstance(entry, Double)}
    new = [one for one in dict.fromkeys(doubles) if one not in known]
    return [*_by_time([entry for entry in entries if id(entry) not in gone]), *removed, *new], new


def _asked(purchase: Sequence[Entry]) -> tuple[Paid, ...]:
    order = purchase[0]
    assert isinstance(order, Order)
    return order.asked


def _precedence(purchase: Sequence[Entry]) -> tuple[bool, str]:
    """Sort key: purchases with a label before those without, then the earlier one; skipped ones last."""
    labels = [entry.at for entry in purchase if isinstance(entry, Delivery)]
    skipped = any(isinstance(entry, Skip) for entry in purchase)
    return (False, min(labels)) if labels else (True, f"{int(skipped)} {purchase[0].at}")


def _double(purchase: Sequence[Entry]) -> Double:
    order = purchase[0]
    assert isinstance(order, Order)
    latest = [entry for entry in purchase if isinstance(entry, Delivery)][-1:]
    work: list[Delivery | Skip] = [*latest, *(entry for entry in purchase if isinstance(entry, Skip))]
    who = work[0].annotator if work else order.annotator
    digest, at = (latest[0].sha256, latest[0].at) if latest else ("", order.at)
    return Double(order.round, order.key, who, float(sum(entry.minutes for entry in work)), digest, at)


def _by_time(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with the deliveries of each purchase sorted by time among their own positions."""
    places: dict[tuple[str, str], list[Delivery]] = {}
    for entry in entries:
        if isinstance(entry, Delivery):
            places.setdefault((entry.round, entry.key), []).append(entry)
    sorted_ones = {place: iter(sorted(several, key=lambda d: d.at)) for place, several in places.items()}
    return [next(sorted_ones[entry.round, entry.key]) if isinstance(entry, Delivery) else entry for entry in entries]


# the labels


def _versions(book: Ledger) -> dict[str, list[str]]:
    """By key of every image that has come back the hashes of its labels, the one that counts first."""
    latest: dict[str, list[str]] = {}
    for entry in reversed(book.entries):
        if isinstance(entry, Delivery):
            latest.setdefault(entry.key, []).append(entry.sha256)
    for entry in book.entries:
        if isinstance(entry, Double) and entry.key in latest:
            latest[entry.key].append(entry.sha256)
    return latest


def _lacks(key: str, digests: Sequence[str]) -> bool:
    """Whether the label that counts has to be fetched: there is none here, or one on record that does not count.

    A label with a hash that is not on record was changed by hand: it stays, and `annotate` takes it as a correction.
    """
    if not paths.mask(key).is_file():
        return True
    digest = storage.sha256(paths.mask(key))
    return digest != digests[0] and digest in digests


def _label_folders() -> list[str]:
    """Hashes of all lists of labels that data/labels.dvc ever named, in any branch; the newest first."""
    texts = [paths.LABELS_DVC.read_text(encoding="utf-8")] if paths.LABELS_DVC.is_file() else []
    texts += repository.sides(paths.LABELS_DVC)
    if repository.has_commits():
        texts += reversed(repository.added(paths.LABELS_DVC, "--all", "--reflog", "HEAD"))
    return list(dict.fromkeys(itertools.chain.from_iterable(map(FOLDER.findall, texts))))


def _fetch(repo: Repo, lacking: Mapping[str, str], folders: Sequence[str]) -> dict[str, bytes]:
    """By key the labels with these hashes that are in DVC's cache or else in its remote."""
    found = _in_cache(repo, lacking, folders)
    left = {key: digest for key, digest in lacking.items() if key not in found}
    if not left:
        return found
    cache = repo.cache.local
    try:
        repo.cloud.pull([HashInfo("md5", name) for name in folders if not cache.exists(name)])
        files = [name for several in _files(repo, left, folders).values() for name in several]
        repo.cloud.pull([HashInfo("md5", name) for name in files if not cache.exists(name)])
    except NoRemoteError:
        return found
    return found | _in_cache(repo, left, folders)


def _in_cache(repo: Repo, lacking: Mapping[str, str], folders: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for key, several in _files(repo, lacking, folders).items():
        for name in several:
            if repo.cache.local.exists(name):
                data = Path(repo.cache.local.oid_to_path(name)).read_bytes()
                if hashlib.sha256(data).hexdigest() == lacking[key]:
                    found[key] = data
                    break
    return found


def _files(repo: Repo, keys: Iterable[str], folders: Sequence[str]) -> dict[str, list[str]]:
    """By key, DVC's hashes of all versions of a label, from the lists in the cache; the newest first."""
    files: dict[str, list[str]] = {key: [] for key in keys}
    keys_of = {(paths.mask(key).name,): key for key in files}
    for folder in folders if files else ():
        if not repo.cache.local.exists(folder):
            continue
        for parts, _, info in Tree.load(repo.cache.local, HashInfo("md5", folder)):
            if parts in keys_of and info.value not in files[keys_of[parts]]:
                files[keys_of[parts]].append(info.value)
    return files


def _keep_present(repo: Repo, key: str) -> None:
    """Put the label that is about to be replaced into DVC's cache, if it is not there."""
    path = paths.mask(key)
    if path.is_file():
        name = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if not repo.cache.local.exists(name):
            repo.cache.local.add_bytes(name, path.read_bytes())


def _lost(repo: Repo, keys: Sequence[str]) -> UserError:
    what = f"{len(keys)} labels that are paid for, {keys[0]!r} first, are not in DVC's cache here"
    try:
        repo.cloud.get_remote()
    except (NoRemoteError, DvcException):
        return UserError(
            f"{what}, and there is no DVC remote: run `dvc remote add -d labels FOLDER`, where FOLDER is .dvc/cache of "
            f"the place where they were bought, or what that place has filled by `dvc push`; then {ledger.JOIN}"
        )
    return UserError(f"{what} nor in its remote: run `dvc push` where they were bought, then here {ledger.JOIN}")


# the rounds


def _renew_round(name: str, book: Ledger) -> None:
    """Rewrite a round's selection from its orders, and delete its list of labels if that is not what is on record."""
    import pandas as pd  # here, since it takes as long to import as all the rest

    orders = book.ordered(name)
    elsewhere = {paid for order in book.orders if order.round != name for paid in order.asked}
    path = paths.selection(name)
    if path.is_file():
        selection, ordered = artifacts.load_selection(name), {order.key for order in orders}
        wanted: set[Paid] = {(key, None) for key in selection["key"]}
        for key, listed in zip(selection["key"], selection.get("regions", ()), strict=False):
            wanted |= {(blocks.image_of(key), region) for region in blocks.numbers(str(listed))}
        if not ordered <= set(selection["key"]) or wanted & elsewhere:
            fields = ("key", "gain", "minutes", "probability", "method")
            if orders:
                rows = [
                    {field: getattr(order, field) for field in fields} | {"regions": blocks.listed(order.regions)}
                    for order in orders
                ]
                artifacts.save_selection(name, pd.DataFrame(rows))
            else:
                path.unlink()  # `select` fills the round anew
            print(f"join: {path}: now the {len(orders)} images that {name} has ordered")
    path = paths.labels(name)
    if path.is_file():
        rows = artifacts.load_labels(name)
        latest = {(delivery.round, delivery.key): delivery.sha256 for delivery in book.deliveries}
        stale = any(latest.get((row["round"], row["key"])) != row["sha256"] for row in rows)
        if stale or not {order.key for order in orders} <= {row["key"] for row in rows}:
            path.unlink()
            print(f"join: {path}: removed, it is not what is on record; `dvc repro` makes it anew")
