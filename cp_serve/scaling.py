"""How many replicas of the denoiser there should be: Serve's controller asks, and applies its own delays and bounds."""

from typing import Any

IMAGES = "images"
"""What a replica tells of its load: images that places are held for."""


def by_images(context: Any) -> tuple[float, dict[str, Any]]:
    """As many replicas as give each of them `target_ongoing_requests` images, one batch.

    A request is for up to eight images, so that counting requests would find a full replica nearly idle. What waits in
    Serve's own queues counts one image a request.

    Args:
        context: Ray Serve's `AutoscalingContext`.
    """
    held = sum((context.aggregated_metrics or {}).get(IMAGES, {}).values())
    return max(held, context.total_num_requests) / context.config.target_ongoing_requests, {}
