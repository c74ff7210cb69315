"""cluster.yaml: Ray accepts it, Ray's AWS code accepts it, EC2 would accept its machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.stub import Stubber
from botocore.validate import validate_parameters
from ray.autoscaler._private.aws import config as aws
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
Config = dict[str, Any]
SUBNETS = {"subnet-a": "us-west-2a", "subnet-b": "us-west-2b"}
PROFILE = {
    "Path": "/",
    "InstanceProfileName": "ray-autoscaler-v1",
    "InstanceProfileId": "AIPA00000000000000000",
    "Arn": "arn:aws:iam::123456789012:instance-profile/ray-autoscaler-v1",
    "CreateDate": "2026-01-01T00:00:00Z",
    "Roles": [
        {
            "Path": "/",
            "RoleName": "ray-autoscaler-v1",
            "RoleId": "AROA00000000000000000",
            "Arn": "arn:aws:iam::123456789012:role/ray-autoscaler-v1",
            "CreateDate": "2026-01-01T00:00:00Z",
        }
    ],
}


@pytest.fixture
def config() -> Config:
    loaded: Config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Stubber]]:
    """Stubbers for the boto clients that Ray uses; every request is checked against AWS's own description of it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    caches = (resource_cache, aws._get_subnets_or_die)
    for cache in caches:
        cache.cache_clear()
    stubs: list[Stubber] = []

    def stub(service: str) -> Stubber:
        stubs.append(Stubber(resource_cache(service, "us-west-2").meta.client))
        stubs[-1].activate()
        return stubs[-1]

    yield stub
    for one in stubs:
        one.assert_no_pending_responses()
    for cache in caches:
        cache.cache_clear()


def subnet(name: str) -> dict[str, Any]:
    where = {"SubnetId": name, "AvailabilityZone": SUBNETS[name], "VpcId": "vpc-1"}
    return {**where, "State": "available", "MapPublicIpOnLaunch": True}


def expect_bootstrap(iam: Stubber, ec2: Stubber) -> None:
    """A fresh account: no key pair, no security group; Ray makes both."""
    group = {"GroupId": "sg-1", "GroupName": "ray-autoscaler-llmos", "VpcId": "vpc-1", "IpPermissions": []}
    open_inside = {"FromPort": -1, "ToPort": -1, "IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-1"}]}
    open_to_all = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    iam.add_response("get_instance_profile", {"InstanceProfile": PROFILE})
    ec2.add_response("describe_key_pairs", {"KeyPairs": []})
    ec2.add_response("create_key_pair", {"KeyName": "k", "KeyMaterial": "private"})
    ec2.add_response("describe_subnets", {"Subnets": [subnet(name) for name in SUBNETS]})
    ec2.add_response("describe_subnets", {"Subnets": [subnet("subnet-a")]})
    ec2.add_response("describe_security_groups", {"SecurityGroups": []})
    ec2.add_response("create_security_group", {"GroupId": "sg-1"})
    ec2.add_response("describe_security_groups", {"SecurityGroups": [group]})
    ec2.add_response(
        "authorize_security_group_ingress", {}, {"GroupId": "sg-1", "IpPermissions": [open_inside, open_to_all]}
    )
    filled = {**group, "IpPermissions": [open_inside, open_to_all]}
    ec2.add_response("describe_security_groups", {"SecurityGroups": [filled]})


def test_ray_accepts_the_file(config: Config) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["provider"]["cache_stopped_nodes"] is False
    assert {
        name: (kind["min_workers"], kind["max_workers"]) for name, kind in prepared["available_node_types"].items()
    } == {
        "head": (0, 0),
        "gpu": (0, 8),
        "gpu-large": (0, 2),
    }


def test_the_aws_bootstrap_accepts_it_and_opens_ssh_only(config: Config, stubbed: Callable[[str], Stubber]) -> None:
    expect_bootstrap(stubbed("iam"), ec2 := stubbed("ec2"))
    ready = aws.bootstrap_aws(prepare_config(config))
    assert ready["head_node"]["IamInstanceProfile"] == {"Arn": PROFILE["Arn"]}
    key = Path(ready["auth"]["ssh_private_key"])
    assert key.read_text() == "private"
    assert key.stat().st_mode & 0o777 == 0o600
    run_instances = ec2.client.meta.service_model.operation_model("RunInstances").input_shape
    for kind in ready["available_node_types"].values():
        node = dict(kind["node_config"])
        assert node["ImageId"].startswith("ami-")  # not Ray's default, whose Python is too old
        assert node["SecurityGroupIds"] == ["sg-1"]
        node["SubnetId"] = node.pop("SubnetIds")[0]
        validate_parameters({**node, "MinCount": 1, "MaxCount": 1}, run_instances)


def test_the_head_command_list_ends_in_llmos_up(config: Config) -> None:
    assert config["head_start_ray_commands"][-1].startswith("llmos up --address auto --autoscaling-config ")
