"""The event log of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

GUARDS = {
    "sqlite": [
        f"CREATE TRIGGER event_no_{action.lower()} BEFORE {action} ON event "
        "BEGIN SELECT RAISE(ABORT, 'events are never changed'); END"
        for action in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION pathloop_never_changed() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'events are never changed'; END $$",
        "CREATE TRIGGER event_no_change BEFORE UPDATE OR DELETE ON event "
        "FOR EACH ROW EXECUTE FUNCTION pathloop_never_changed()",
        "CREATE TRIGGER event_no_truncate BEFORE TRUNCATE ON event "
        "FOR EACH STATEMENT EXECUTE FUNCTION pathloop_never_changed()",
    ],
}


def upgrade() -> None:
    op.create_table("schema_version", sa.Column("version", sa.Integer, primary_key=True))
    op.create_table(
        "event",
        sa.Column("uuid", sa.String(36), primary_key=True),
        *(
            sa.Column(name, sa.Text, nullable=False)
            for name in ("kind", "rater", "source", "at", "image", "shown_as", "generator")
        ),
        *(
            sa.Column(name, sa.Text)
            for name in ("checklist", "checklist_version", "checklist_hash", "answers", "verdict")
        ),
        *(sa.Column(name, sa.Float) for name in ("seconds", "first_seconds", "hidden_seconds")),
        sa.Column("comment", sa.Text),
        sa.Column("view", sa.Text),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("client_seq", sa.Integer, nullable=False),
        sa.Column("supersedes", sa.String(36)),
        sa.UniqueConstraint("session", "client_seq"),
    )
    for guard in GUARDS[op.get_bind().dialect.name]:
        op.execute(guard)
    op.execute("INSERT INTO schema_version (version) VALUES (1)")
