"""The same API as most projects would write it: synchronous routes, a SQLModel session, response models.

No token, no checks, no errors: only the way to the database and back is compared.
"""

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlmodel import Session, col, create_engine, func, select

from taskctl.models import Task
from taskctl.server.tables import AccountRow, TaskRow


class _Task(Task):
    """As the wire has it, but for two fields that the table keeps in another form."""

    priority: int
    extra: str | None


class _Page(BaseModel):
    items: list[_Task]
    next_cursor: int | None


class _Content(BaseModel):
    title: str
    description: str | None = None
    completed: bool = False


class _Completion(BaseModel):
    completed: bool


def create_app() -> FastAPI:
    """The reference application, on the database that `DATABASE_URL` names."""
    url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, pool_size=10)

    def open_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    database = Annotated[Session, Depends(open_session)]
    app = FastAPI()

    @app.get("/livez")
    def live() -> None:
        return None

    @app.get("/api/v1/{user_id}/tasks/{task_id}", response_model=_Task)
    def read(user_id: str, task_id: int, session: database) -> TaskRow | None:
        return session.get(TaskRow, (user_id, task_id))

    @app.get("/api/v1/{user_id}/tasks", response_model=_Page)
    def page(user_id: str, session: database, limit: int = 50, cursor: int = 0) -> dict[str, object]:
        query = select(TaskRow).where(TaskRow.user_id == user_id, TaskRow.id >= cursor)
        rows = session.exec(query.order_by(col(TaskRow.id)).limit(limit + 1)).all()
        return {"items": rows[:limit], "next_cursor": rows[limit].id if len(rows) > limit else None}

    @app.post("/api/v1/{user_id}/tasks", response_model=_Task, status_code=201)
    def create(user_id: str, content: _Content, session: database) -> TaskRow:
        account = session.get_one(AccountRow, user_id, with_for_update=True)
        account.last_task_id += 1
        task = TaskRow(user_id=user_id, id=account.last_task_id, version=1, **content.model_dump())
        session.add(task)
        session.commit()
        session.refresh(task)
        return task

    @app.patch("/api/v1/{user_id}/tasks/{task_id}/complete", response_model=_Task)
    def complete(user_id: str, task_id: int, body: _Completion, session: database) -> TaskRow:
        task = session.get_one(TaskRow, (user_id, task_id), with_for_update=True)
        if task.completed != body.completed:
            task.completed = body.completed
            task.completed_at = func.now() if body.completed else None
            task.version += 1
            task.updated_at = func.now()
            session.commit()
            session.refresh(task)
        return task

    return app
