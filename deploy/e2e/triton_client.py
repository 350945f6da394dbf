"""What a program that knows Triton sees of a model here: python triton_client.py HOST:PORT MODEL REFERENCE < pixels, prints JSON."""

import json
import sys

import numpy as np
import tritonclient.http as triton

address, model, reference = sys.argv[1:4]
client = triton.InferenceServerClient(url=address)
metadata = client.get_model_metadata(model)
_, height, width, channels = metadata["inputs"][0]["shape"]
pixels = np.frombuffer(sys.stdin.buffer.read(), dtype=np.uint8).reshape((-1, height, width, channels))


def ask(values, datatype, binary):
    given = triton.InferInput("pixels", list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    wanted = [triton.InferRequestedOutput("scores", binary_data=binary)]
    parameters = {"reference": reference} if datatype == "UINT8" else {}
    answer = client.infer(model, [given], outputs=wanted, request_id="one", parameters=parameters)
    return {"scores": answer.as_numpy("scores").tolist(), "version": answer.get_response()["model_version"], "id": answer.get_response().get("id")}


def refused():
    try:
        client.infer("no-such-model", [triton.InferInput("pixels", [1], "UINT8").set_data_from_numpy(np.zeros(1, np.uint8))])
    except triton.InferenceServerException as error:
        return str(error)


print(
    json.dumps(
        {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "modelReady": client.is_model_ready(model),
            "server": client.get_server_metadata(),
            "metadata": metadata,
            "binary": ask(pixels, "UINT8", True),
            "json": ask(pixels, "UINT8", False),
            "floats": ask(pixels.astype(np.float32) / 255 * 4, "FP32", True),
            "refused": refused(),
        }
    )
)
