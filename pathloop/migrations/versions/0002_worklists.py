"""Worklists, the checklists themselves, and a chain of hashes that shows tampering."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for column in ("assignment", "purpose", "chain_hash"):
        op.add_column("event", sa.Column(column, sa.Text))
    op.add_column("event", sa.Column("chain_place", sa.Integer))
    op.create_index("event_chain", "event", ["session", "chain_place"], unique=True)
    op.create_index("event_rater", "event", ["rater"])
    op.create_table(
        "checklist",
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
    )
    op.create_table(
        "worklist",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("design", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("made_at", sa.Text, nullable=False),
        sa.Column("closed_at", sa.Text),
    )
    op.create_table(
        "item",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("worklist", sa.Text, sa.ForeignKey("worklist.name"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("other", sa.Text),
        sa.Column("shown_as", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.UniqueConstraint("worklist", "position"),
    )
    op.create_table(
        "item_secret",
        sa.Column("item", sa.String(36), sa.ForeignKey("item.id"), primary_key=True),
        sa.Column("generator", sa.Text, nullable=False),
        sa.Column("other_generator", sa.Text),
        sa.Column("expected", sa.Text),
    )
    op.create_table(
        "assignment",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("worklist", sa.Text, sa.ForeignKey("worklist.name"), nullable=False),
        sa.Column("item", sa.String(36), sa.ForeignKey("item.id"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("rater", sa.Text),
        sa.Column("place", sa.Integer),
        sa.Column("lease_until", sa.Float),
        sa.Column("event", sa.String(36)),
        sa.UniqueConstraint("item", "rater", "purpose"),
        sa.UniqueConstraint("worklist", "rater", "place"),
    )
    op.create_index("assignment_free", "assignment", ["worklist", "state", "position"])
    if op.get_bind().dialect.name == "sqlite":  # INSERT OR REPLACE deletes without asking the other two triggers
        op.execute(
            "CREATE TRIGGER event_no_replace BEFORE INSERT ON event "
            "WHEN EXISTS (SELECT 1 FROM event WHERE uuid = NEW.uuid) "
            "BEGIN SELECT RAISE(ABORT, 'events are never changed'); END"
        )
    op.execute("UPDATE schema_version SET version = 2")  # so that the first release refuses this store
