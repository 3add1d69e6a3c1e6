"""Creates the projects of a benchmark."""

from __future__ import annotations

import httpx2

from app.demo.service import ServiceProcess


def create_project(service: ServiceProcess, name: str) -> str:
    """Create a project; returns a key of it."""
    projects = f"{service.address}/v1/organization/projects"
    with httpx2.Client(headers={"authorization": f"Bearer {service.api_key}"}) as admin:
        project = admin.post(projects, json={"name": name}).raise_for_status().json()["id"]
        account = admin.post(f"{projects}/{project}/service_accounts", json={"name": name}).raise_for_status()
    return account.json()["api_key"]["value"]
