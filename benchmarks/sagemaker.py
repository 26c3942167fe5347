"""The SageMaker gateway as a process of its own, with one endpoint.

sagemaker.py NAME INVOCATIONS_URL      prints its port
"""

import sys
import threading

from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway

if __name__ == "__main__":
    with SageMakerGateway({sys.argv[1]: LocalEndpoint(sys.argv[2])}) as gateway:
        print(gateway.url.rpartition(":")[2], flush=True)
        threading.Event().wait()
