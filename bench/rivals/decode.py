"""OpenCV decodes and resizes the pictures named, each line of stdin a command: WAY ROUNDS. Answers CPU ms a picture, one thread."""
import json, sys, time
import cv2
import numpy as np

cv2.setNumThreads(1)
folder, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
names = sys.argv[4:]
jpegs = [np.fromfile(f"{folder}/{name}", np.uint8) for name in names]
flags = {
    "full": cv2.IMREAD_COLOR,
    "reduced2": cv2.IMREAD_REDUCED_COLOR_2,
    "reduced4": cv2.IMREAD_REDUCED_COLOR_4,
    "reduced8": cv2.IMREAD_REDUCED_COLOR_8,
}


def prepare(way, jpeg):
    return cv2.resize(cv2.imdecode(jpeg, flags[way]), (width, height), interpolation=cv2.INTER_AREA)


for line in sys.stdin:
    way, rounds = line.split()
    if rounds == "write":
        for name, jpeg in zip(names, jpegs):
            cv2.cvtColor(prepare(way, jpeg), cv2.COLOR_BGR2RGB).tofile(f"{folder}/{name}.{way}.rgb")
        print(json.dumps({"version": cv2.__version__}), flush=True)
        continue
    since = time.process_time()
    for _ in range(int(rounds)):
        for jpeg in jpegs:
            prepare(way, jpeg)
    print(json.dumps({"cpuMs": (time.process_time() - since) * 1000 / int(rounds) / len(jpegs)}), flush=True)
