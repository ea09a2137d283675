"""The OpenAPI document of what is deployed."""

from typing import Any

from gateway_double import Info, Method

from rayobjects.objects.catalog import describe
from rayobjects.objects.marks import internal
from rayobjects.objects.model import DurableObject
from rayobjects.serve.openapi import document


def by_number() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"by": {"type": "integer", "default": 1}},
        "additionalProperties": False,
    }


def test_methods_with_their_types() -> None:
    methods = {
        "increment": Method(
            "increment",
            "Counts up.\n\nBy one unless told.",
            parameters=by_number(),
            returns={"type": "integer"},
        ),
        "reset": Method("reset", internal=True),
        "read": Method("read", parameters={"type": "object", "properties": {}}),
    }
    info = Info("Counter", doc="Counts.", methods=methods)
    made = document([info])
    assert made["openapi"].startswith("3.1")
    assert made["tags"] == [{"name": "Counter", "description": "Counts."}]
    assert set(made["paths"]) == {
        "/objects/Counter",
        "/objects/Counter/{name}/increment",
        "/objects/Counter/{name}/read",
    }
    operation = made["paths"]["/objects/Counter/{name}/increment"]["post"]
    assert operation["tags"] == ["Counter"]
    assert operation["summary"] == "Counts up."
    assert operation["description"] == "By one unless told."
    body = operation["requestBody"]
    assert body["content"]["application/json"]["schema"] == by_number()
    assert not body["required"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"type": "integer"}
    problem = operation["responses"]["default"]["content"]["application/problem+json"]
    assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert {one["name"] for one in operation["parameters"]} == {"name", "Idempotency-Key"}
    assert "requestBody" not in made["paths"]["/objects/Counter/{name}/read"]["post"]


def test_sockets_and_raw_requests_are_shown() -> None:
    made = document([Info("Room", sockets=True, requests=True)])
    assert "101" in made["paths"]["/objects/Room/{name}"]["get"]["responses"]
    assert "put" in made["paths"]["/objects/Room/{name}/fetch/{path}"]


def test_definitions_that_differ_get_the_class_in_front() -> None:
    reference = {"$ref": "#/components/schemas/Item"}
    shop = Info(
        "Shop",
        methods={"buy": Method("buy", parameters={"properties": {"item": reference}})},
        definitions={"Item": {"type": "string"}, "Same": {"type": "null"}},
    )
    depot = Info(
        "Depot",
        methods={"find": Method("find", returns={"type": "array", "items": reference})},
        definitions={"Item": {"type": "integer"}, "Same": {"type": "null"}},
    )
    made = document([shop, depot])
    schemas = made["components"]["schemas"]
    assert set(schemas) == {"Problem", "Item", "Same", "Shop.Item"}
    assert schemas["Item"] == {"type": "integer"}
    buy = made["paths"]["/objects/Shop/{name}/buy"]["post"]["requestBody"]
    properties = buy["content"]["application/json"]["schema"]["properties"]
    assert properties["item"]["$ref"] == "#/components/schemas/Shop.Item"
    find = made["paths"]["/objects/Depot/{name}/find"]["post"]["responses"]["200"]
    assert find["content"]["application/json"]["schema"]["items"] == reference


def test_a_real_class() -> None:
    class Account(DurableObject):
        """Money of one owner."""

        def deposit(self, cents: int, note: str = "") -> int:
            """Adds money."""
            return cents

        @internal
        def audit(self) -> None: ...

    made = document([describe(Account)])
    operation = made["paths"]["/objects/Account/{name}/deposit"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["cents"]
    assert schema["properties"]["cents"]["type"] == "integer"
    assert operation["requestBody"]["required"]
    assert not any(path.endswith("/audit") for path in made["paths"])
