async def test_create(api, user):
    """A task that was created can be read."""
    made = await api.post("/api/v1/me/tasks", json={"title": "x"})
    assert made.status_code == 201, made.text
    assert (await api.get(made.headers["Location"])).json() == made.json()
