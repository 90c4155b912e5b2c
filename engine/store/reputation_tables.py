"""The tables of `store.reputation` in the identity state, whose every opener makes them and few ever read."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE engine_server_reputation_checks (
    id INTEGER PRIMARY KEY, ip TEXT NOT NULL, rbl TEXT NOT NULL, status TEXT NOT NULL, since REAL NOT NULL,
    checked_at REAL NOT NULL, times INTEGER NOT NULL, reliable INTEGER NOT NULL, listings TEXT NOT NULL,
    txt TEXT NOT NULL, detail TEXT NOT NULL, latency_ms REAL NOT NULL, ttl_s INTEGER
);
CREATE INDEX reputation_checks_newest ON engine_server_reputation_checks (ip, rbl, checked_at);
CREATE INDEX reputation_checks_by_age ON engine_server_reputation_checks (checked_at);
-- AUTOINCREMENT: operators write these numbers down
CREATE TABLE engine_server_blacklist_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, ip TEXT NOT NULL, rbl TEXT NOT NULL, sublist TEXT NOT NULL,
    severity INTEGER NOT NULL, first_seen REAL NOT NULL, confirmed_at REAL, opened_at REAL, last_seen REAL NOT NULL,
    closed_at REAL, close_reason TEXT, flaps INTEGER NOT NULL, seen INTEGER, seen_since REAL NOT NULL, ask_at REAL,
    code TEXT NOT NULL, meaning TEXT NOT NULL, txt TEXT NOT NULL, expected_expiry REAL
);
CREATE INDEX blacklist_events_of ON engine_server_blacklist_events (ip, rbl, closed_at);
CREATE INDEX blacklist_events_by_rbl ON engine_server_blacklist_events (rbl, closed_at);
CREATE INDEX blacklist_events_open ON engine_server_blacklist_events (id) WHERE closed_at IS NULL;
CREATE TABLE engine_server_delist_requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event INTEGER NOT NULL REFERENCES engine_server_blacklist_events (id) ON DELETE CASCADE,
    method TEXT NOT NULL, url TEXT NOT NULL, instructions TEXT NOT NULL, status TEXT NOT NULL, opened_at REAL NOT NULL,
    moved_at REAL NOT NULL, cooldown_s REAL NOT NULL, expiry_s REAL, requested_at REAL, cooldown_until REAL,
    actor TEXT NOT NULL, notes TEXT NOT NULL
);
CREATE INDEX delist_requests_of ON engine_server_delist_requests (event, id);
CREATE TABLE engine_server_alert_notices (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, at REAL NOT NULL, severity INTEGER NOT NULL, subject TEXT NOT NULL,
    rbl TEXT NOT NULL, target TEXT NOT NULL, facts TEXT NOT NULL, settled_at REAL, message TEXT
) WITHOUT ROWID;
CREATE INDEX alert_notices_waiting ON engine_server_alert_notices (at) WHERE settled_at IS NULL;
CREATE INDEX alert_notices_settled ON engine_server_alert_notices (settled_at) WHERE message IS NOT NULL;
CREATE INDEX alert_notices_of ON engine_server_alert_notices (subject);
CREATE TABLE engine_server_alert_outbox (
    message TEXT NOT NULL, channel TEXT NOT NULL, at REAL NOT NULL, body TEXT NOT NULL, next_at REAL NOT NULL,
    attempts INTEGER NOT NULL, sent_at REAL, problem TEXT NOT NULL, PRIMARY KEY (message, channel)
) WITHOUT ROWID;
CREATE INDEX alert_outbox_waiting ON engine_server_alert_outbox (channel, next_at) WHERE sent_at IS NULL;
"""
