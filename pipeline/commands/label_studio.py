"""`python -m pipeline label-studio`: a Label Studio server on this machine, for people who have none."""

import signal

from pipeline import paths
from pipeline.annotators.label_studio import server
from pipeline.annotators.label_studio.server import Server
from pipeline.errors import UserError
from pipeline.params import Params


def run(params: Params, port: int) -> None:
    """Run a server until Ctrl-C.

    Raises:
        UserError: it could not be installed or started, or it ended by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    data = paths.LABEL_STUDIO
    try:
        server.install()
        print("starting Label Studio (the first time, when it makes its database, takes a minute or two)", flush=True)
        running = server.start(data, port)
        try:
            _tell(running, params)
            running.process.wait()
        finally:
            running.stop()
    except KeyboardInterrupt:
        print("Label Studio is stopped")
        return
    log = data / "server.log"
    raise UserError(f"Label Studio ended by itself ({server.last_line(log)}): {log} says more; run the command again")


def _tell(server: Server, params: Params) -> None:
    key = paths.LABEL_STUDIO / "key.env"
    print(f"Label Studio is at {server.url}: log in as {server.login.email} with password {server.login.password}")
    print(f"before `dvc repro`, in another terminal:  source {key}")
    if params.annotate.annotator != "label_studio" or params.annotate.url.rstrip("/") != server.url:
        print(f"in {paths.PARAMS}, under annotate:  annotator: label_studio, url: {server.url}")
    print(f"its data is in {paths.LABEL_STUDIO}; Ctrl-C stops it", flush=True)
