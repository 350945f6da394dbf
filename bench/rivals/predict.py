"""The same model behind FastAPI, as one would serve it in Python and then tune it: uvicorn with uvloop and httptools, as many
workers as cores, the quickest decode that serves (OpenCV, scaled while decoding), one thread per worker, no pydantic.

python predict.py onnxruntime|tensorflow PORT WORKERS FOLDER; python predict.py litserve PORT WORKERS FOLDER
"""

import io
import json
import os
import sys

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(1)
side = 64
engine, port, workers, folder = os.environ.get("ENGINE", ""), 0, 1, os.environ.get("FOLDER", "")
if __name__ == "__main__":
    engine, port, workers, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.environ["ENGINE"], os.environ["FOLDER"] = engine, folder

meta = json.load(open(os.path.join(folder, "meta.json")))
reference = np.frombuffer(open(os.path.join(folder, "references.bin"), "rb").read(), np.uint8)[: side * side * 3].reshape(side, side, 3).astype(np.float32)


def prepare(body):
    wide, high = Image.open(io.BytesIO(body)).size
    scale = next((by for by in (8, 4, 2) if wide >= by * side and high >= by * side), 1)
    flag = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}[scale]
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), flag)
    if picture.shape[:2] != (side, side):
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    pixels = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.float32)
    return np.abs(pixels - reference) * np.float32(4 / 255)


def open_onnxruntime():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], {"pixels": batch})[0]


def open_tensorflow():
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    layers = tf.keras.layers
    given = layers.Input((side, side, 3))
    value = given
    for filters in (12, 24, 32):
        value = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(value)
    pooled = layers.Concatenate()([layers.GlobalMaxPooling2D()(value), layers.GlobalAveragePooling2D()(value)])
    model = tf.keras.Model(given, layers.Dense(len(meta["classes"]))(pooled))
    specs = json.load(open(os.path.join(folder, "model.json")))["weightsManifest"][0]["weights"]
    raw, at, weights = open(os.path.join(folder, "weights.bin"), "rb").read(), 0, []
    for spec in specs:
        size = int(np.prod(spec["shape"])) * 4
        weights.append(np.frombuffer(raw[at : at + size], np.float32).reshape(spec["shape"]))
        at += size
    model.set_weights(weights)
    run = tf.function(lambda batch: model(batch, training=False), input_signature=[tf.TensorSpec((None, side, side, 3), tf.float32)])
    return lambda batch: run(tf.constant(batch)).numpy()


def answer(logits):
    powers = np.exp(logits - logits.max())
    scores = powers / powers.sum()
    best = int(scores.argmax())
    named = [{"class": name, "score": float(score)} for name, score in zip(meta["classes"], scores)]
    return json.dumps({"answer": meta["classes"][best], "confidence": float(scores[best]), "scores": named, "modelVersion": "1"})


if engine in ("onnxruntime", "tensorflow"):
    from fastapi import FastAPI, Request, Response

    predict = open_onnxruntime() if engine == "onnxruntime" else open_tensorflow()
    app = FastAPI()

    @app.post("/v1/models/{task}/predict")
    async def route(request: Request):
        return Response(answer(predict(prepare(await request.body())[None])[0]), media_type="application/json")

    if __name__ == "__main__":
        import uvicorn

        sys.path.insert(0, os.path.dirname(__file__))
        uvicorn.run("predict:app", host="127.0.0.1", port=port, workers=workers, loop="uvloop", http="httptools", log_level="error", access_log=False)
elif engine == "litserve":
    from typing import Annotated

    import litserve
    from fastapi import Depends, Request, Response

    async def body(request: Request):
        return await request.body()

    # the bytes as they are: JSON with base64 in it, which is the usual way, takes longer
    Picture = Annotated[bytes, Depends(body)]

    class Api(litserve.LitAPI):
        def setup(self, device):
            self.predictor = open_onnxruntime()

        def decode_request(self, request: Picture):
            return prepare(request)

        def batch(self, inputs):
            return np.stack(inputs)

        def predict(self, batch):
            return self.predictor(batch)

        def unbatch(self, output):
            return list(output)

        def encode_response(self, output):
            return Response(answer(output), media_type="application/json")

    if __name__ == "__main__":
        api = Api(max_batch_size=16, batch_timeout=0.002, api_path="/v1/models/bench/predict")
        server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
        server.run(host="127.0.0.1", port=port, num_api_servers=workers, log_level="error", generate_client_file=False)
