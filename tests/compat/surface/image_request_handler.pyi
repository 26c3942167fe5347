logger: BoundLogger

class ImageRequestHandler:
    def __init__(
        self,
        job_table: JobTable,
        image_status_monitor: ImageStatusMonitor,
        endpoint_statistics_table: EndpointStatisticsTable,
        tiling_strategy: TilingStrategy,
        region_request_queue: RequestQueue,
        region_request_table: RegionRequestTable,
        endpoint_utils: EndpointUtils,
        config: ServiceConfig,
        region_request_handler: RegionRequestHandler,
    ): ...
    job_table: Any
    image_status_monitor: Any
    endpoint_statistics_table: Any
    tiling_strategy: Any
    region_request_queue: Any
    region_request_table: Any
    endpoint_utils: Any
    config: Any
    region_request_handler: Any
    def process_image_request(self, image_request: ImageRequest) -> None: ...
    def queue_region_request(
        self,
        all_regions: list[ImageRegion],
        image_request: ImageRequest,
        raster_dataset: Dataset,
        sensor_model: SensorModel | None,
        image_extension: str | None,
    ) -> None: ...
    def load_image_request(
        self, job_item: JobItem, roi: BaseGeometry
    ) -> tuple[str, Dataset, SensorModel | None, list[ImageRegion]]: ...
    def fail_image_request(self, job_item: JobItem, err: Exception) -> None: ...
    def complete_image_request(
        self, region_request: RegionRequest, image_format: str, raster_dataset: Dataset, sensor_model: SensorModel
    ) -> None: ...
    def deduplicate(
        self,
        job_item: JobItem,
        features: list[Feature],
        raster_dataset: Dataset,
        sensor_model: SensorModel,
        metrics: MetricsLogger = None,
    ) -> list[Feature]: ...
    def validate_model_hosting(self, image_request: JobItem): ...
    def end_image_request(self, job_item: JobItem, image_format: str, metrics: MetricsLogger = None) -> None: ...
    @staticmethod
    def calculate_processing_bounds(
        raster_dataset: Dataset, sensor_model: SensorModel, roi_wkt: str | None = None
    ) -> tuple[tuple[int, int], tuple[int, int]]: ...
    @staticmethod
    def sink_features(job_item: JobItem, features: list[Feature], metrics: MetricsLogger = None) -> None: ...
