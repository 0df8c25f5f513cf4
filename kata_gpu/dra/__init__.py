"""gRPC shells: DRA driver, PodResources bridge, device plugin."""
