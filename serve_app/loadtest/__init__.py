"""Open-loop load tests of any flux-serve over HTTP: plan, send, watch, reconcile, report.

Data flow: options -> `plan` -> `sender` (a process of its own: Locust and gevent live only there)
-> outcomes, while replicas are sampled -> `figures`, `books` (the ledger check), `slo` -> `report`.
Must not import ray, torch, the engine, metering or the service: it knows a server by its API only.
"""
