"""cluster.yaml as Ray itself reads it, with a stand-in for AWS."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]


@pytest.fixture
def raw() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return data


def test_ray_accepts_it(raw: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(raw)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert all(types[name]["min_workers"] == 0 for name in ("cpu_data", "gpu_spot"))
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_ray_can_launch_it(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's own AWS bootstrap fills in keys, subnets and the security group; no port but ssh is open to the world."""
    import boto3
    import moto
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        iam = boto3.client("iam", region_name="us-west-2")
        for name in ("zhlm-head", "zhlm-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        launched = bootstrap_aws(prepare_config(raw))
        group = boto3.client("ec2", region_name="us-west-2").describe_security_groups(GroupNames=["zhlm-private"])["SecurityGroups"][0]
    for node in launched["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == [group["GroupId"]]
        assert node["node_config"]["ImageId"].startswith("resolve:ssm:")
        assert node["node_config"]["IamInstanceProfile"]["Name"] in ("zhlm-head", "zhlm-worker")
    open_ports = {rule.get("FromPort") for rule in group["IpPermissions"] if rule["IpRanges"]}
    assert open_ports == {22}


def test_everything_installed_is_pinned(raw: dict[str, Any]) -> None:
    commands = [*raw["setup_commands"], *raw["head_setup_commands"], *raw["worker_setup_commands"], *raw["initialization_commands"]]
    installs = [c for c in commands if re.search(r"\bpip3? install\b|\bapt-get install\b|conda install", c)]
    assert installs and all("--constraint ~/setup/constraints.txt" in c for c in installs)
    assert all((ROOT / local).exists() for local in raw["file_mounts"].values() if not local.startswith("~"))
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    named = set(
        re.findall(r'^    "([A-Za-z0-9_.-]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional")[0], re.M)
    )
    missing = {n for n in {*named, "boto3"} if not re.search(rf"^{n}==", pinned, re.M | re.I)}
    assert not missing


def test_token_and_private_ports(raw: dict[str, Any]) -> None:
    starts = [c for c in (*raw["head_start_ray_commands"], *raw["worker_start_ray_commands"]) if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in c for c in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0] and "--num-cpus=0" in starts[0]
    assert "/home/ubuntu/.ray/auth_token" in raw["file_mounts"]


def test_a_lost_node_is_noticed_soon_and_each_worker_watches_for_its_notice(raw: dict[str, Any]) -> None:
    (head,) = [c for c in raw["head_start_ray_commands"] if "ray start" in c]
    health = {name: int(ms) for name, ms in re.findall(r"RAY_health_check_(\w+)=(\d+)", head.split("ray start")[0])}
    silent_ms = health["failure_threshold"] * (health["period_ms"] + health["timeout_ms"])
    assert silent_ms <= 12_000, "of the 20 s in which training is to go on"
    docs = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    assert all(f"| `RAY_health_check_{name}` | {value} |" in docs for name, value in health.items())
    (agent,) = [c for c in raw["worker_start_ray_commands"] if "spot.py" in c]
    assert "RAY_AUTH_MODE=token" in agent and agent.endswith("&") and raw["file_mounts"]["/home/ubuntu/setup/spot.py"] == "zhlm/spot.py"
    imported = re.findall(r"^(?:from|import) (\w+)", (ROOT / "zhlm/spot.py").read_text(encoding="utf-8"), re.M)
    assert "zhlm" not in imported, "it runs there as one file"


def test_one_place_names_the_region(raw: dict[str, Any]) -> None:
    region = raw["provider"]["region"]
    raw["provider"] = {}
    assert region not in yaml.safe_dump(raw)
