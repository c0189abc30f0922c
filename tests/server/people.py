"""Somebody at work in Label Studio, through the same HTTP calls that the browser makes."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from tests import sdk
from tests.server.studio import Studio


class Person:
    """One user of a server. Independent of the code under test."""

    def __init__(self, studio: Studio, headers: Mapping[str, str] | None = None) -> None:
        self.url = studio.url
        self.http = httpx.Client(
            base_url=studio.url, headers=headers or {"Authorization": f"Token {studio.token}"}, timeout=300
        )

    def call(self, method: str, path: str, **more: Any) -> Any:
        """Call the server, which must agree."""
        answer = self.http.request(method, path, **more)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def project(self, title: str) -> dict[str, Any]:
        """The one project of this title."""
        found = [
            p for p in self.call("GET", "/api/projects", params={"page_size": 1000})["results"] if p["title"] == title
        ]
        assert len(found) == 1, [p["title"] for p in found]
        return dict(found[0])

    def tasks(self, title: str) -> dict[str, dict[str, Any]]:
        """All tasks of a project with everything in them, by their key; no key may occur twice."""
        listed = self.call(
            "GET", "/api/tasks", params={"project": self.project(title)["id"], "page_size": 1000, "fields": "all"}
        )
        keys = [task["data"]["key"] for task in listed["tasks"]]
        assert len(set(keys)) == len(keys), f"twice in {title}: {sorted(keys)}"
        return {task["data"]["key"]: task for task in listed["tasks"]}

    def submit(
        self, task: Mapping[str, Any], result: Any = None, *, seconds: Any = 30.0, **more: Any
    ) -> dict[str, Any]:
        """Submit an annotation, by default the prediction as it is."""
        if result is None:
            result = copy.deepcopy(task["predictions"][0]["result"])
        body = {"result": result, "lead_time": seconds, **more}
        return dict(self.call("POST", f"/api/tasks/{task['id']}/annotations/", json=body))

    def skip(self, task: Mapping[str, Any], *, seconds: float = 6.0) -> dict[str, Any]:
        """Skip a task as the browser does: with the whole prediction."""
        return self.submit(task, seconds=seconds, was_cancelled=True)

    def update(self, annotation: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        """Change an annotation."""
        return dict(self.call("PATCH", f"/api/annotations/{annotation['id']}/", json=changes))


def colleague(studio: Studio, email: str) -> tuple[Person, str]:
    """A second user, who signs up by invitation, and their personal access token."""
    owner = Person(studio)
    link = owner.call("GET", "/api/invite")["invite_url"]
    owner.http.close()
    session = httpx.Client(base_url=studio.url, timeout=300)
    session.get(link)
    form = {"email": email, "password": "a-pass-word", "csrfmiddlewaretoken": session.cookies["csrftoken"]}
    assert session.post(link, data=form, headers={"Referer": studio.url}).status_code == 302
    headers = {"X-CSRFToken": session.cookies["csrftoken"], "Referer": studio.url}
    answer = session.post("/api/token/", headers=headers)
    assert answer.status_code == 201, answer.text
    person = Person(studio, headers)
    person.http.cookies = session.cookies
    session.close()
    return person, str(answer.json()["token"])


def region(mask: np.ndarray, label: str, name: str = "by-hand") -> dict[str, Any]:
    """A new brush stroke, encoded by Label Studio's own SDK."""
    value = {"format": "rle", "rle": list(sdk.encode(mask)), "brushlabels": [label]}
    size = {"original_width": mask.shape[1], "original_height": mask.shape[0], "image_rotation": 0}
    return {"id": name, "type": "brushlabels", "from_name": "label", "to_name": "image", "value": value, **size}


def regions(mask: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A whole label: one region per class, with the ids of the prediction."""
    return [region(mask == n, name, f"c{n:02d}") for n, name in enumerate(names) if (mask == n).any()]


def text(html: str) -> str:
    """What a page says."""
    return re.sub(r"<[^>]+>", "", html)
