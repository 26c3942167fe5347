"""Image requests that break the contract, each in its own way, and the fields that the refusal has to name.

``MALFORMED`` is a list of (id, message body, fields). Bodies are text, as they lie on the queue.
"""

import json
from typing import Any

GOOD: dict[str, Any] = {
    "jobId": "job-1",
    "jobName": "a name that nothing reads",
    "imageUrls": ["s3://images/scene.tif"],
    "outputs": [{"type": "S3", "bucket": "results", "prefix": "job-1/"}],
    "imageProcessor": {"name": "centerpoint", "type": "SM_ENDPOINT"},
    "imageProcessorTileSize": 512,
    "imageProcessorTileOverlap": 64,
    "imageProcessorTileFormat": "GTIFF",
    "imageProcessorTileCompression": "NONE",
}


def changed(**fields: Any) -> str:
    """Return the good request as text with these fields in place of its own."""
    return json.dumps(GOOD | fields)


def without(*names: str) -> str:
    """Return the good request as text without these fields."""
    return json.dumps({name: value for name, value in GOOD.items() if name not in names})


def _distillation(**algorithm: Any) -> list[dict[str, Any]]:
    return [{"step": "FEATURE_DISTILLATION", "algorithm": algorithm}]


_S3 = {"type": "S3", "bucket": "results", "prefix": "p"}
_KINESIS = {"type": "Kinesis", "stream": "results"}
_NAMES_TWICE = '{"jobId": "other", ' + changed()[1:]

MALFORMED: list[tuple[str, str, set[str]]] = [
    # Not JSON, or not JSON that may be read.
    ("empty body", "", {"body"}),
    ("no json", "submit job-1, please", {"body"}),
    ("truncated", changed()[:-20], {"body"}),
    ("single quotes", str(GOOD), {"body"}),
    ("a list", "[" + changed() + "]", {"body"}),
    ("a string", json.dumps(changed()), {"body"}),
    ("null", "null", {"body"}),
    ("nested too deep", changed(featureProperties="X").replace('"X"', "[" * 40 + "]" * 40), {"body"}),
    ("nested to end a parser", "[" * 100_000, {"body"}),
    ("too many bytes", changed(jobName="x" * 300_000), {"body"}),
    ("endless integer", changed(imageProcessorTileSize="X").replace('"X"', "9" * 5_000), {"body"}),
    ("not a number", changed(featureProperties=[{"deep": float("nan")}]), {"featureProperties[0].deep"}),
    ("infinite tile size", changed(imageProcessorTileSize=float("inf")), {"imageProcessorTileSize"}),
    ("overflowing number", changed(jobName="X").replace('"X"', "1e999"), {"jobName"}),
    ("half a character", changed(jobId="job-\ud83d"), {"jobId"}),
    ("half a character below", changed(featureProperties=[{"k": "\udc00"}]), {"featureProperties[0].k"}),
    ("key given twice", _NAMES_TWICE, {"jobId"}),
    # Required fields and their kinds.
    ("empty object", "{}", {"jobId", "imageUrls", "imageProcessor", "outputs"}),
    ("no job id", without("jobId"), {"jobId"}),
    ("null job id", changed(jobId=None), {"jobId"}),
    ("empty job id", changed(jobId=""), {"jobId"}),
    ("number as job id", changed(jobId=17), {"jobId"}),
    ("line break in job id", changed(jobId="job\n1"), {"jobId"}),
    ("job id too long", changed(jobId="j" * 129), {"jobId"}),
    ("job id without a name", changed(jobId="folder/"), {"jobId"}),
    ("job id that climbs", changed(jobId="a/.."), {"jobId"}),
    ("no images", without("imageUrls"), {"imageUrls"}),
    ("empty list of images", changed(imageUrls=[]), {"imageUrls"}),
    ("image as text", changed(imageUrls="s3://images/scene.tif"), {"imageUrls"}),
    ("image of no kind", changed(imageUrls=["s3://images/a.tif", None, 5]), {"imageUrls[1]", "imageUrls[2]"}),
    ("same image twice", changed(imageUrls=["s3://images/a.tif"] * 2), {"imageUrls"}),
    ("bucket without key", changed(imageUrls=["s3://images"]), {"imageUrls[0]"}),
    ("virtual path", changed(imageUrls=["s3://images/a.tif", "/vsicurl/http://host/a.tif"]), {"imageUrls[1]"}),
    ("inline VRT", changed(imageUrls=["<VRTDataset/>"]), {"imageUrls[0]"}),
    ("read role that is no ARN", changed(imageReadRole="reader"), {"imageReadRole"}),
    # The model.
    ("no model", without("imageProcessor"), {"imageProcessor"}),
    ("model as text", changed(imageProcessor="centerpoint"), {"imageProcessor"}),
    ("model without name", changed(imageProcessor={"type": "SM_ENDPOINT"}), {"imageProcessor.name"}),
    ("model of mode NONE", changed(imageProcessor={"name": "m", "type": "NONE"}), {"imageProcessor.type"}),
    ("model of no known type", changed(imageProcessor={"name": "m", "type": "HTTP"}), {"imageProcessor.type"}),
    ("URL as endpoint name", changed(imageProcessor={"name": "http://model/"}), {"imageProcessor.name"}),
    (
        "name as model URL",
        changed(imageProcessor={"name": "centerpoint", "type": "HTTP_ENDPOINT"}),
        {"imageProcessor.name"},
    ),
    (
        "link-local model",
        changed(imageProcessor={"name": "http://169.254.169.254/", "type": "HTTP_ENDPOINT"}),
        {"imageProcessor.name"},
    ),
    (
        "file as model URL",
        changed(imageProcessor={"name": "file:///etc/passwd", "type": "HTTP_ENDPOINT"}),
        {"imageProcessor.name"},
    ),
    (
        "role that is no ARN",
        changed(imageProcessor={"name": "m", "assumedRole": "invoker"}),
        {"imageProcessor.assumedRole"},
    ),
    ("parameters as list", changed(imageProcessorParameters=["TargetVariant"]), {"imageProcessorParameters"}),
    # Tiles.
    ("tile size in words", changed(imageProcessorTileSize="big"), {"imageProcessorTileSize"}),
    ("tile size as switch", changed(imageProcessorTileSize=True), {"imageProcessorTileSize"}),
    ("tile size as pair", changed(imageProcessorTileSize=[512, 512]), {"imageProcessorTileSize"}),
    ("tile of no size", changed(imageProcessorTileSize=0), {"imageProcessorTileSize"}),
    ("tile of one pixel", changed(imageProcessorTileSize=1), {"imageProcessorTileSize"}),
    ("tile too large", changed(imageProcessorTileSize=8_193), {"imageProcessorTileSize"}),
    ("negative overlap", changed(imageProcessorTileOverlap=-1), {"imageProcessorTileOverlap"}),
    ("overlap as large as the tile", changed(imageProcessorTileOverlap="512"), {"imageProcessorTileOverlap"}),
    ("format in lower case", changed(imageProcessorTileFormat="png"), {"imageProcessorTileFormat"}),
    ("format of no kind", changed(imageProcessorTileFormat=["PNG"]), {"imageProcessorTileFormat"}),
    ("unknown compression", changed(imageProcessorTileCompression="ZIP"), {"imageProcessorTileCompression"}),
    # The pixels that the model gets.
    ("input as text", changed(imageProcessorInput="RGB"), {"imageProcessorInput"}),
    ("input with a misspelt key", changed(imageProcessorInput={"band": [1]}), {"imageProcessorInput.band"}),
    (
        "input of which every key is wrong",
        changed(
            imageProcessorInput={
                "bands": [0, 1.5, True, " ", "red"],
                "stretch": {"type": "LINEAR", "per": "PIXEL", "n": 0},
                "pixelType": "INT8",
                "nodataFill": "black",
            }
        ),
        {
            *(f"imageProcessorInput.bands[{index}]" for index in range(4)),
            *(f"imageProcessorInput.stretch.{key}" for key in ("type", "per", "n")),
            "imageProcessorInput.pixelType",
            "imageProcessorInput.nodataFill",
        },
    ),
    ("input without bands", changed(imageProcessorInput={"bands": []}), {"imageProcessorInput.bands"}),
    (
        "a scale out of reach",
        changed(imageProcessorInput={"scale": 0.04, "resampling": "LANCZOS"}),
        {"imageProcessorInput.scale", "imageProcessorInput.resampling"},
    ),
    (
        "a scale beside a size on the ground",
        changed(imageProcessorInput={"scale": 0.5, "gsd": 0.5}),
        {"imageProcessorInput.scale"},
    ),
    ("a size of no pixel", changed(imageProcessorInput={"gsd": 0}), {"imageProcessorInput.gsd"}),
    (
        "a fill that no type holds",
        changed(imageProcessorInput={"nodataFill": 1e301}),
        {"imageProcessorInput.nodataFill"},
    ),
    (
        "a limit in words",
        changed(imageProcessorInput={"stretch": {"type": "MINMAX", "min": "dark"}}),
        {"imageProcessorInput.stretch.min"},
    ),
    (
        "limits of two and of three bands",
        changed(imageProcessorInput={"stretch": {"type": "MINMAX", "min": [1, 2], "max": [5, 6, 7]}}),
        {"imageProcessorInput.stretch.max"},
    ),
    (
        "keys of another stretch",
        changed(imageProcessorInput={"stretch": {"type": "SIGMA", "min": 1, "lower": 2}}),
        {"imageProcessorInput.stretch.min", "imageProcessorInput.stretch.lower"},
    ),
    (
        "percentiles the wrong way around",
        changed(imageProcessorInput={"stretch": {"type": "PERCENTILE", "lower": 60, "upper": 40}}),
        {"imageProcessorInput.stretch.upper"},
    ),
    (
        "a lower percentile above the upper one by default",
        changed(imageProcessorInput={"stretch": {"type": "PERCENTILE", "lower": 99}}),
        {"imageProcessorInput.stretch"},
    ),
    (
        "limits the wrong way around in one band",
        changed(imageProcessorInput={"stretch": {"type": "MINMAX", "min": [1, 5], "max": 5}}),
        {"imageProcessorInput.stretch.max"},
    ),
    (
        "a limit for each band of a range of all bands",
        changed(imageProcessorInput={"stretch": {"type": "MINMAX", "per": "ALL", "min": [1, 2]}}),
        {"imageProcessorInput.stretch.min"},
    ),
    (
        "more limits than bands",
        changed(imageProcessorInput={"bands": [1, 2], "stretch": {"type": "MINMAX", "min": [1, 2, 3]}}),
        {"imageProcessorInput.stretch"},
    ),
    (
        "a fill that the pixel type does not hold",
        changed(imageProcessorInput={"pixelType": "UINT8", "nodataFill": 256}),
        {"imageProcessorInput.nodataFill"},
    ),
    # Outputs.
    ("no outputs", without("outputs"), {"outputs"}),
    ("empty list of outputs", changed(outputs=[]), {"outputs"}),
    ("outputs as object", changed(outputs=_S3), {"outputs"}),
    ("output as text", changed(outputs=["S3"]), {"outputs[0]"}),
    ("output without type", changed(outputs=[{"bucket": "results"}]), {"outputs[0].type"}),
    ("output of no known type", changed(outputs=[_S3, {"type": "s3", "bucket": "b"}]), {"outputs[1].type"}),
    ("S3 without bucket", changed(outputs=[{"type": "S3", "prefix": "p"}]), {"outputs[0].bucket"}),
    ("ARN as bucket", changed(outputs=[_S3 | {"bucket": "arn:aws:s3:::results"}]), {"outputs[0].bucket"}),
    ("prefix that climbs", changed(outputs=[_S3 | {"prefix": "a/../b"}]), {"outputs[0].prefix"}),
    ("prefix from the root", changed(outputs=[_S3 | {"prefix": "/a"}]), {"outputs[0].prefix"}),
    ("unknown extra", changed(outputs=[_S3 | {"extras": ["COVERAGE", "POSTER"]}]), {"outputs[0].extras[1]"}),
    ("extra as text", changed(outputs=[_S3 | {"extras": "COVERAGE"}]), {"outputs[0].extras"}),
    ("S3 role that is no ARN", changed(outputs=[_S3 | {"role": "writer"}]), {"outputs[0].role"}),
    ("Kinesis without stream", changed(outputs=[{"type": "Kinesis"}]), {"outputs[0].stream"}),
    ("batch of nothing", changed(outputs=[_KINESIS | {"batchSize": 0}]), {"outputs[0].batchSize"}),
    ("unknown partition key", changed(outputs=[_KINESIS | {"partitionKey": "job_id"}]), {"outputs[0].partitionKey"}),
    ("bucket of the older form", json.dumps(json.loads(without("outputs")) | {"outputBucket": "results"}), {"outputs"}),
    (
        "bad bucket of the older form",
        json.dumps(json.loads(without("outputs")) | {"outputBucket": "No Bucket", "outputPrefix": "p"}),
        {"outputBucket"},
    ),
    # Fields about features.
    ("region that is not WKT", changed(regionOfInterest="the harbour"), {"regionOfInterest"}),
    ("region as a point", changed(regionOfInterest="POINT (1 2)"), {"regionOfInterest"}),
    ("region as list", changed(regionOfInterest=[[0, 0], [1, 1]]), {"regionOfInterest"}),
    ("region as object", changed(regionOfInterest={"type": "Polygon"}), {"regionOfInterest.url"}),
    ("region in a database", changed(regionOfInterest={"url": "PG:dbname=a"}), {"regionOfInterest.url"}),
    ("region in a number", changed(regionOfInterest={"url": 1}), {"regionOfInterest.url"}),
    ("region off the Earth", changed(regionOfInterest="POLYGON((0 0, 0 99, 9 99, 0 0))"), {"regionOfInterest"}),
    ("properties as object", changed(featureProperties={"a": 1}), {"featureProperties"}),
    ("properties of no kind", changed(featureProperties=[{"a": 1}, 2]), {"featureProperties[1]"}),
    ("post-processing as text", changed(postProcessing=json.dumps(_distillation())), {"postProcessing"}),
    (
        "unknown step",
        changed(postProcessing=[{"step": "SORT", "algorithm": {"algorithmType": "NMS"}}]),
        {"postProcessing[0].step"},
    ),
    (
        "unknown algorithm",
        changed(postProcessing=_distillation(algorithmType="WBF")),
        {"postProcessing[0].algorithm.algorithmType"},
    ),
    (
        "algorithm of no kind",
        changed(postProcessing=_distillation(algorithmType=["NMS"])),
        {"postProcessing[0].algorithm.algorithmType"},
    ),
    (
        "threshold above one",
        changed(postProcessing=_distillation(algorithmType="NMS", iouThreshold=75)),
        {"postProcessing[0].algorithm.iouThreshold"},
    ),
    (
        "threshold as switch",
        changed(postProcessing=_distillation(algorithmType="NMS", iou_threshold=True)),
        {"postProcessing[0].algorithm.iou_threshold"},
    ),
    (
        "sigma of nothing",
        changed(postProcessing=_distillation(algorithmType="SOFT_NMS", sigma=0)),
        {"postProcessing[0].algorithm.sigma"},
    ),
    (
        "two distillations",
        changed(postProcessing=_distillation(algorithmType="NMS") * 2),
        {"postProcessing"},
    ),
    # Several things at once.
    (
        "wrong in every part",
        changed(
            jobId=None,
            imageUrls=["PG:host=db"],
            imageProcessor={"name": "a b", "type": "SM_ENDPOINT", "assumedRole": "x"},
            imageProcessorTileSize="x",
            imageProcessorTileOverlap=-3,
            imageProcessorTileFormat="BMP",
            outputs=[{"type": "S3"}, {"type": "Kinesis", "stream": "a stream"}],
            featureProperties=[{"n": float("-inf")}],
            postProcessing=_distillation(algorithmType="NMS", iouThreshold="much"),
        ),
        {
            "jobId",
            "imageUrls[0]",
            "imageProcessor.name",
            "imageProcessor.assumedRole",
            "imageProcessorTileSize",
            "imageProcessorTileOverlap",
            "imageProcessorTileFormat",
            "outputs[0].bucket",
            "outputs[1].stream",
            "featureProperties[0].n",
            "postProcessing[0].algorithm.iouThreshold",
        },
    ),
]
