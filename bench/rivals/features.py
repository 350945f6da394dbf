"""frames.extracted -> prepared zones, as one would write it in Python: confluent-kafka, boto3, OpenCV, fastavro.

plain: one record after the other, full decode. tuned: batches, eight threads, the quickest decode that serves, more processes of it in one group.
Unlike frameloop it delivers at least once, without transactions. Prints a line when it has its partitions; ends with stdin.
"""
import hashlib, io, json, os, struct, sys, threading
from concurrent.futures import ThreadPoolExecutor
import boto3, cv2, fastavro
import numpy as np
from botocore.config import Config
from confluent_kafka import Consumer, Producer

cv2.setNumThreads(1)
job = json.loads(os.environ["JOB"])
tuned = job["way"] == "tuned"
frame_schema = fastavro.parse_schema(json.loads(job["frameSchema"]))
features_schema = fastavro.parse_schema(json.loads(job["featuresSchema"]))
width, height = job["width"], job["height"]
s3 = boto3.client("s3", endpoint_url=job["s3"], region_name="us-east-1", config=Config(max_pool_connections=16, s3={"addressing_style": "path"}))
flag = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}[job["scale"] if tuned else 1]


def prepare(value):
    frame = fastavro.schemaless_reader(io.BytesIO(value[5:]), frame_schema)
    body = s3.get_object(Bucket=frame["object"]["bucket"], Key=frame["object"]["key"])["Body"].read()
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), flag)
    high, wide = picture.shape[:2]
    packed, zones = [], []
    for zone in job["zones"]:
        x, y = round(zone["x"] * wide / zone["pictureWidth"]), round(zone["y"] * high / zone["pictureHeight"])
        w, h = round(zone["width"] * wide / zone["pictureWidth"]), round(zone["height"] * high / zone["pictureHeight"])
        crop = cv2.resize(picture[y : y + h, x : x + w], (width, height), interpolation=cv2.INTER_AREA)
        gray = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)
        zones.append({
            "zone": zone["zone"], "tasks": ["occupancy"], "x": zone["x"], "y": zone["y"], "width": zone["width"], "height": zone["height"],
            "offset": len(packed) * width * height * 3, "shape": [height, width, 3],
            "brightness": float(gray.mean()), "sharpness": float(cv2.Laplacian(gray, cv2.CV_32F).var()), "phash": "",
        })
        packed.append(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB).tobytes())
    pixels = b"".join(packed)
    sha256 = hashlib.sha256(pixels)
    key = f"{job['prefix']}/{frame['frameId']}-{sha256.hexdigest()}.bin"
    s3.put_object(Bucket=job["bucket"], Key=key, Body=pixels, ContentType="application/octet-stream")
    event = {name: frame[name] for name in ("siteId", "cameraId", "mediaId", "epoch", "seq", "lane", "source", "frameId", "frameAt", "mediaOffsetUs")}
    event |= {
        "preprocessing": "python", "picture": frame["object"], "pictureWidth": frame["width"], "pictureHeight": frame["height"], "zones": zones, "pixels": pixels,
        "object": {"bucket": job["bucket"], "key": key, "sha256": sha256.digest(), "bytes": len(pixels), "versionId": "", "contentType": "application/octet-stream"},
        "preparedAt": 0, "stageVersion": "python",
    }
    out = io.BytesIO()
    out.write(struct.pack(">bI", 0, job["featuresId"]))
    fastavro.schemaless_writer(out, features_schema, event)
    return out.getvalue()


consumer = Consumer({
    "bootstrap.servers": job["brokers"], "group.id": job["group"], "enable.auto.commit": False, "auto.offset.reset": "earliest",
    "fetch.wait.max.ms": 50, "session.timeout.ms": 6000,
})
producer = Producer({"bootstrap.servers": job["brokers"], "enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4", "partitioner": "murmur2_random", "message.max.bytes": 9000000})
consumer.subscribe([job["input"]], on_assign=lambda _, partitions: print(json.dumps({"assigned": len(partitions)}), flush=True))
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
pool = ThreadPoolExecutor(8)
while not over.is_set():
    if tuned:
        messages = [message for message in consumer.consume(64, 0.1) if not message.error()]
        for message, value in zip(messages, pool.map(prepare, [message.value() for message in messages])):
            producer.produce(job["output"], value, message.key())
        if messages:
            producer.flush()
            consumer.commit(asynchronous=False)
    else:
        message = consumer.poll(0.1)
        if message is None or message.error():
            continue
        producer.produce(job["output"], prepare(message.value()), message.key())
        producer.poll(0)
        consumer.commit(message, asynchronous=True)
producer.flush()
consumer.close()
