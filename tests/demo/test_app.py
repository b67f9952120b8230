"""The demo's answers, and what it refuses."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import demo, random
from gpulayers.demo import Look, Server, make_app
from gpulayers.errors import DataError, GPULayersError, ParameterError
from gpulayers.layers import Flatten, FullyConnected
from gpulayers.models import Sequential, build, mlp, resnet9
from gpulayers.training import Dataset

STATIC = Path(demo.__file__).parent / "static"


@pytest.fixture
def client(look: Look, digits: Dataset) -> Any:
    return make_app(look, digits.test).test_client()


def encoded(image: np.ndarray) -> str:
    return base64.b64encode(image.tobytes()).decode()


def decoded(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def request(image: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"rows": image.shape[0], "cols": image.shape[1], "pixels": encoded(image), **more}


def seven() -> np.ndarray:
    image = np.zeros((112, 112), np.uint8)
    image[20:28, 30:80] = 255
    for i in range(70):
        image[20 + i, 72 - i // 2 : 80 - i // 2] = 255
    return image


def test_a_drawing_is_read_and_every_layer_shown(client: Any, look: Look) -> None:
    answer = client.post("/api/look", json=request(seven())).get_json()
    assert answer["predicted"] == answer["explained"] == 7 and not answer["blank"]
    assert sum(answer["probabilities"]) == pytest.approx(1)
    assert answer["probabilities"][7] == max(answer["probabilities"])
    assert decoded(answer["input"], 28, 28).max() == 255
    shapes = [layer["shape"] for layer in answer["layers"]]
    assert shapes == [[28, 28, 6], [14, 14, 6], [10, 10, 16], [5, 5, 16], [120], [84], [10]]
    kinds = [layer["kind"] for layer in answer["layers"]]
    assert kinds == ["Conv2D", "Pool2D"] * 2 + ["FullyConnected"] * 3
    assert answer["layers"][0]["detail"] == "5 x 5, ReLU"
    X = look.network.pixels(decoded(answer["input"], 1, 28, 28, 1), np.float32)
    Y = look.network[0].forward(X, False)[0].transpose(2, 0, 1)
    levels = decoded(answer["layers"][0]["maps"], *answer["layers"][0]["size"])
    expected = (Y - Y.min()) / (Y.max() - Y.min()) * 255
    assert np.abs(levels - expected).max() <= 1.01


def test_the_gradient_is_that_of_the_score() -> None:
    # a smooth network: where pooling has ties and ReLU bends, differences tell one side's slope
    random.seed(3)
    network = Sequential([Flatten(), FullyConnected(24, act_fn="Tanh"), FullyConnected(5)])
    look = Look(network)
    for explain in (None, 3):
        answer = look.at(seven(), explain)
        assert answer["explained"] == (answer["predicted"] if explain is None else explain)
        shown = (decoded(answer["gradient"], 28, 28) - 128.0) / 127 * answer["steepest"]
        X = network.pixels(decoded(answer["input"], 1, 28, 28, 1), np.float32)
        places = np.argsort(-np.abs(shown), axis=None)[[0, 1, 40, 300]]
        for place in places:
            scores = []
            for step in (0.03, -0.03):
                moved = X.copy()
                moved.reshape(-1)[place] += step
                scores.append(float(network.predict(moved)[0, answer["explained"]]))
            slope = (scores[0] - scores[1]) / 0.06
            assert slope == pytest.approx(shown.flat[place], abs=answer["steepest"] / 100)
        assert np.abs(shown).max() == pytest.approx(answer["steepest"])


def test_answers_do_not_change_the_network(client: Any, look: Look) -> None:
    before = {name: a.copy() for name, a in look.network.parameters.items()}
    first = client.post("/api/look", json=request(seven())).get_json()
    client.post("/api/look", json=request(np.zeros((9, 9), np.uint8), explain=1))
    again = client.post("/api/look", json=request(seven())).get_json()
    first.pop("milliseconds"), again.pop("milliseconds")
    assert first == again
    for name, array in look.network.parameters.items():
        np.testing.assert_array_equal(array, before[name])


def test_no_drawing(client: Any) -> None:
    assert client.post("/api/look", json=request(np.zeros((9, 9), np.uint8))).get_json()["blank"]


def test_the_network_and_examples(client: Any, digits: Dataset) -> None:
    facts = client.get("/api/network").get_json()
    assert facts["classes"] == list("0123456789") and facts["parameters"] == 61_706
    assert facts["examples"] == 2000 and facts["title"] == "LeNet-5 of the tests"
    example = client.get("/api/example/5").get_json()
    assert example["label"] == digits.test.labels[5]
    np.testing.assert_array_equal(decoded(example["image"], 28, 28, 1), digits.test.images[5])
    missing = client.get("/api/example/2000")
    assert missing.status_code == 404 and "no example 2000" in missing.get_json()["error"]


GOOD = request(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    "body, words",
    [
        (None, "a JSON object"),
        ([1], "a JSON object"),
        ({}, "rows must be an integer in 1..512, got None"),
        ({**GOOD, "rows": 0}, "rows must be an integer in 1..512, got 0"),
        ({**GOOD, "cols": 3.0}, "cols must be an integer in 1..512, got 3.0"),
        ({**GOOD, "cols": True}, "cols must be an integer"),
        ({**GOOD, "cols": 10**9}, "cols must be an integer"),
        ({**GOOD, "cols": 4}, "rows * cols = 8 bytes, got 6"),
        ({**GOOD, "pixels": 7}, "pixels must be a base64 string"),
        ({**GOOD, "pixels": "=="}, "not base64"),
        ({**GOOD, "pixels": "é"}, "not base64"),
        ({**GOOD, "explain": "3"}, "explain must be a class's number or null, got '3'"),
        ({**GOOD, "explain": 10}, "explain must be 0..9, got 10"),
        ({**GOOD, "explain": -1}, "explain must be 0..9, got -1"),
    ],
)
def test_bad_requests_are_explained(client: Any, body: Any, words: str) -> None:
    answer = client.post("/api/look", json=body)
    assert answer.status_code == 400
    assert words in answer.get_json()["error"]


def test_other_failures_are_json_too(client: Any) -> None:
    broken = client.post("/api/look", data=b"{", content_type="application/json")
    assert broken.status_code == 400 and "JSON" in broken.get_json()["error"]
    large = client.post("/api/look", data=b"x" * 2**21, content_type="application/json")
    assert large.status_code in (400, 413) and large.get_json()["error"]
    assert client.get("/api/look").status_code == 405
    assert client.get("/nothing").get_json()["error"]
    assert client.get("/static/../app.py").status_code == 404


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Host": "127.0.0.1:8321"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:1"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:1@evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1:8321", "Origin": "http://127.0.0.1:8321"}, 200),
        ({"Host": "127.0.0.1:8321", "Origin": "http://127.0.0.1:9999"}, 403),
        ({"Host": "127.0.0.1:8321", "Origin": "https://evil.example"}, 403),
        ({"Host": "127.0.0.1:8321", "Origin": "null"}, 403),
    ],
)
def test_only_this_machine_is_answered(client: Any, headers: dict[str, str], status: int) -> None:
    with client.get("/", headers=headers) as page:
        assert page.status_code == status
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    answer = client.post("/api/look", json=request(seven()), headers=headers)
    assert answer.status_code == status, answer.get_data()
    assert status == 200 or "answers to" in answer.text or "other pages" in answer.text


def test_the_page_loads_nothing_from_elsewhere(client: Any) -> None:
    paths = ["/", *(f"/static/{file.name}" for file in STATIC.iterdir())]
    assert len(paths) >= 5
    for path in paths:
        with client.get(path) as answer:
            text = answer.get_data(as_text=True)
        links = re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"^\s*//.*", "", text, flags=re.M))
        assert set(links) <= {"http://www.w3.org"}, path  # SVG's namespace, which is not loaded
    with client.get("/") as answer:
        page = answer.get_data(as_text=True)
    assert "style=" not in page and "<script>" not in page  # the policy would stop them
    for path in re.findall(r'(?:href|src)="([^"#]+)"', page):
        with client.get(path) as answer:
            assert answer.status_code == 200, path


def test_networks_that_are_not_for_digits() -> None:
    with pytest.raises(DataError, match=r"images \(28, 28, 1\): .*Conv2D"):
        Look(colours())
    with pytest.raises(DataError, match=r"logits \(n, classes\), got \(1, 28, 28, 1\)"):
        from gpulayers.models import Activation

        Look(Sequential([Activation("ReLU")]))
    with pytest.raises(DataError, match="10 classes apart, but has 2 names"):
        Look(mlp(), ("a", "b"))
    with pytest.raises(ParameterError, match=r"0\.\.9, got 12"):
        Look(mlp()).at(seven(), 12)


def colours() -> Sequential:
    """A network for images of three channels."""
    network = build("lenet", 10, (32, 32, 3))
    network.forward(np.zeros((1, 32, 32, 3), np.float32), False)
    return network


def test_large_and_odd_networks_are_shown_in_part() -> None:
    answer = Look(resnet9(10, (28, 28, 1))).at(seven())
    assert answer["layers"][0]["shape"] == [28, 28, 64]
    assert answer["layers"][0]["size"] == [32, 28, 28]
    wide = Sequential([Flatten(), FullyConnected(300, act_fn="Tanh"), FullyConnected(2)])
    answer = Look(wide, ("even", "odd")).at(seven())
    assert answer["layers"][0]["size"] == [1, 1, 256]
    assert len(answer["probabilities"]) == 2


def test_a_port_that_is_taken(server: Server, look: Look) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}/"
    with pytest.raises(GPULayersError, match=rf"port {server.port} is taken; --port 0 takes any"):
        Server(make_app(look), server.port)
