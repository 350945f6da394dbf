-- Who may ask inference, what about, and how often. Of a key itself only its SHA-256 is kept.
create table api_keys (
  key_id text primary key,
  name text not null,
  digest bytea not null,
  -- {"verbs": ["predict", "feeds", "models"], "cameras": ["door"], "tasks": ["occupancy"]}; an empty list means all
  scope jsonb not null,
  -- requests and frames a second; null: as many as there are
  rate double precision,
  made_at timestamptz not null default now(),
  revoked_at timestamptz
);

-- One-use tickets for WebSockets of browsers, which cannot send a header. Kept here, so that any replica takes them.
create table api_tickets (
  digest bytea primary key,
  key_id text not null references api_keys,
  expires_at timestamptz not null
);
